"""Words counted on the device, whatever a model's tokens are: how near to the number asked for."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.byte_stream import IS_BLANK_256
from ppo_jax.rewards.length import nearness, without_stop
from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array, Rollout


class WordTables(NamedTuple):
    """A row a token. Tokens without bytes have none of these."""

    begun_V: Array  # int32, words that begin inside, after a blank of the token itself
    opens_V: Array  # bool, its first byte is no blank
    closes_V: Array  # bool, its last byte is no blank
    filled_V: Array  # bool, it has bytes


def target_words(
    words: float | str,
    *,
    width: float | None = None,
    floor: float | None = 0.0,
    name: str = "target_words",
) -> DeviceReward:
    """The reward max(floor, 1 - |n - target| / width) of a response of n words; float32 [B].

    A word is a run of bytes without a blank, so n is `len(text.encode().split())`. `words` is the
    target, or the numeric column of the data that holds each prompt's; all else is as in
    `rewards.length.target_length`. With `width=1` the score is 1 for the very number, else 0.
    """
    score = nearness(words, "words", width=width, floor=floor, name=name)

    def of_words(rollout: Rollout, columns: dict[str, Array], tables: WordTables) -> Array:
        return score(count_words(rollout, tables), columns)

    return DeviceReward(name, of_words, word_tables)


def count_words(rollout: Rollout, tables: WordTables) -> Array:
    """Words of each response without its stop token, float32 [B]."""
    ids_BT = rollout.response_ids_BT
    filled_BT = (without_stop(rollout) > 0) & tables.filled_V[ids_BT]
    at_BT = lax.broadcasted_iota(jnp.int32, ids_BT.shape, 1)
    # The place of the last token with bytes up to here; shifted, of the one before; -1: none.
    last_BT = lax.cummax(jnp.where(filled_BT, at_BT, -1), axis=1)
    before_BT = jnp.pad(last_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    closes_BT = jnp.take_along_axis(tables.closes_V[ids_BT], jnp.maximum(before_BT, 0), axis=1)
    goes_on_BT = closes_BT & (before_BT >= 0)
    begun_BT = tables.begun_V[ids_BT] + (tables.opens_V[ids_BT] & ~goes_on_BT)
    return jnp.sum(jnp.where(filled_BT, begun_BT, 0), axis=1).astype(jnp.float32)


def word_tables(tokenizer: Any, vocab_size: int) -> WordTables:
    """`make_tables` of rewards that count words. Raises ConfigError as `token_bytes` does."""
    bytes_VN, lengths_V = token_bytes(tokenizer, vocab_size)
    inside_VN = np.arange(bytes_VN.shape[1]) < lengths_V[:, None]
    solid_VN = inside_VN & ~IS_BLANK_256[bytes_VN]
    last_V = np.maximum(lengths_V - 1, 0)
    tables: dict[str, Any] = {
        "begun_V": (solid_VN[:, 1:] & ~solid_VN[:, :-1]).sum(axis=1).astype(np.int32),
        "opens_V": solid_VN[:, 0],
        "closes_V": np.take_along_axis(solid_VN, last_V[:, None], axis=1)[:, 0],
        "filled_V": lengths_V > 0,
    }
    return WordTables(**tables)
