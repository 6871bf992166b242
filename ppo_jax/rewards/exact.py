"""Rewards on the device for the response that a column of the data gives.

Texts are compared as bytes, so that every tokenisation of the same text counts as the same.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.byte_stream import IS_BLANK_256, ByteTables, byte_stream, byte_tables, bytes_at
from ppo_jax.rewards.length import without_stop
from ppo_jax.types import Array, Rollout, Texts


class Agreement(NamedTuple):
    """How far each response agrees with each of its row's texts, in bytes."""

    prefix_BC: Array  # that agree, from the start on
    response_BC: Array  # of the response, the same for all texts
    text_BC: Array
    given_BC: Array  # bool, there is such a text


def exact_match(
    column: str = "answer", *, strip: bool = True, must_end: bool = True, name: str = "exact_match"
) -> DeviceReward:
    """1 if the response is the text of that column, or one of its texts, else 0; float32 [B].

    The response is the bytes of its tokens (`tokenizer.token_bytes`) without the stop token;
    special tokens have none. With `strip`, blanks (those of `bytes.strip`) at either end of the
    response and of the text do not count; without, mind that most tokenizers begin a response with
    a blank or drop one. With `must_end` a response that was cut off at the length limit is no
    match, whatever it says.

    Raises `ConfigError` for a column without a name. That the data lacks the column, or a row of it
    holds no text, is a `DataError` before the run begins.
    """
    _check_column(column, name)

    def score(rollout: Rollout, columns: dict[str, Any], tables: ByteTables) -> Array:
        found = agreement(rollout, columns[column], tables, strip=strip)
        whole_BC = (found.prefix_BC == found.text_BC) & (found.response_BC == found.text_BC)
        matches_B = jnp.any(whole_BC & found.given_BC, axis=1)
        return (matches_B & rollout.ended_B if must_end else matches_B).astype(jnp.float32)

    return DeviceReward(name, score, byte_tables, texts=(column,))


def prefix_match(
    column: str = "answer", *, strip: bool = True, name: str = "prefix_match"
) -> DeviceReward:
    """How much of the response and of the column's text agrees from the start; float32 [B], 0 to 1.

    The number of leading bytes that agree over the bytes of the longer of the two: 1 for the text
    itself alone, where `exact_match` says the same, and a step towards it for each byte that is
    right. Of several texts the one that agrees best counts. Whether the response was cut off makes
    no difference. Arguments and errors are those of `exact_match`.
    """
    _check_column(column, name)

    def score(rollout: Rollout, columns: dict[str, Any], tables: ByteTables) -> Array:
        found = agreement(rollout, columns[column], tables, strip=strip)
        longer_BC = jnp.maximum(found.response_BC, found.text_BC)
        share_BC = jnp.where(longer_BC > 0, found.prefix_BC / jnp.maximum(longer_BC, 1), 1.0)
        return jnp.max(jnp.where(found.given_BC, share_BC, 0.0), axis=1).astype(jnp.float32)

    return DeviceReward(name, score, byte_tables, texts=(column,))


def agreement(rollout: Rollout, texts: Texts, tables: ByteTables, *, strip: bool) -> Agreement:
    """Responses, without their stop tokens, against the texts of their rows."""
    M = texts.bytes_BCM.shape[2]
    at_M = jnp.arange(M)
    stream = byte_stream(rollout.response_ids_BT, without_stop(rollout), tables, strip=strip)
    at_BM = jnp.broadcast_to(at_M[None], (stream.end_B.shape[0], M))
    response_BM = bytes_at(stream, at_BM, tables)
    text_BCM, text_BC = _stripped(texts) if strip else (texts.bytes_BCM, texts.sizes_BC)
    inside_BCM = at_M[None, None] < text_BC[..., None]
    agrees_BCM = inside_BCM & (response_BM[:, None] == text_BCM.astype(jnp.int32))
    prefix_BC = jnp.sum(jnp.cumprod(agrees_BCM.astype(jnp.int32), axis=2), axis=2)
    response_BC = jnp.broadcast_to(stream.sizes_B[:, None], text_BC.shape)
    return Agreement(prefix_BC, response_BC, text_BC, texts.sizes_BC > 0)


def _stripped(texts: Texts) -> tuple[Array, Array]:
    """(bytes, sizes) of the texts without the blanks at their ends."""
    M = texts.bytes_BCM.shape[2]
    at_M = jnp.arange(M)
    solid_BCM = at_M[None, None] < texts.sizes_BC[..., None]
    solid_BCM &= ~jnp.asarray(IS_BLANK_256)[texts.bytes_BCM]
    first_BC = jnp.argmax(solid_BCM, axis=2)
    end_BC = jnp.max(jnp.where(solid_BCM, at_M[None, None] + 1, 0), axis=2)
    index_BCM = jnp.minimum(first_BC[..., None] + at_M[None, None], M - 1)
    size_BC = jnp.maximum(end_BC - first_BC, 0)  # blanks alone: nothing is left
    return jnp.take_along_axis(texts.bytes_BCM, index_BCM, axis=2), size_BC


def _check_column(column: str, name: str) -> None:
    if not (isinstance(column, str) and column):
        raise ConfigError(f"reward {name}: column must name a column of texts, got {column!r}")
