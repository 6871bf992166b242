"""A response as bytes on the device, whatever its tokenisation.

The stream is never unrolled. How many bytes each token adds gives where it begins and ends, and the
byte at a place is looked up: which token holds it, and which of that token's bytes it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array

BLANKS = b" \t\n\r\x0b\x0c"  # what `bytes.strip` takes away
IS_BLANK_256 = np.isin(np.arange(256), list(BLANKS))


class ByteTables(NamedTuple):
    """A row a token: its bytes, which stand in `bytes_N` one token after another."""

    bytes_N: Array  # uint8
    begins_V: Array  # int32, where in bytes_N
    lengths_V: Array  # int32
    leading_V: Array  # int32, blanks at its beginning; all of its bytes, where it has no others
    trailing_V: Array  # int32, blanks at its end


class ByteStream(NamedTuple):
    """Responses as streams of bytes, of which those from `start_B` up to `end_B` count."""

    ids_BT: Array
    ends_BT: Array  # int32, bytes up to the end of each token
    start_B: Array
    end_B: Array

    @property
    def sizes_B(self) -> Array:
        return self.end_B - self.start_B


def byte_tables(tokenizer: Any, vocab_size: int) -> ByteTables:
    """`make_tables` of rewards that read bytes. Raises ConfigError as `token_bytes` does."""
    return build_tables(*token_bytes(tokenizer, vocab_size))


def build_tables(bytes_VN: np.ndarray, lengths_V: np.ndarray) -> ByteTables:
    """Tables for a vocabulary given as bytes (uint8, `lengths_V` of each row count)."""
    inside_VN = np.arange(bytes_VN.shape[1]) < lengths_V[:, None]
    solid_VN = inside_VN & ~IS_BLANK_256[bytes_VN]
    has_V = solid_VN.any(axis=1)
    last_V = bytes_VN.shape[1] - solid_VN[:, ::-1].argmax(axis=1)
    begins_V = np.cumsum(lengths_V) - lengths_V
    leading_V = np.where(has_V, solid_VN.argmax(axis=1), lengths_V)
    trailing_V = np.where(has_V, lengths_V - last_V, lengths_V)
    rows: tuple = (begins_V, lengths_V, leading_V, trailing_V)
    bytes_N: Any = np.append(bytes_VN[inside_VN], np.uint8(0))  # never empty: it is looked up in
    return ByteTables(bytes_N, *(x_V.astype(np.int32) for x_V in rows))


def byte_stream(ids_BT: Array, counts_BT: Array, tables: ByteTables, *, strip: bool) -> ByteStream:
    """The bytes of the tokens that count (bool or float [B, T]), with `strip` less the blanks
    before the first and after the last byte that is none."""
    counts_BT = counts_BT > 0
    lengths_BT = jnp.where(counts_BT, tables.lengths_V[ids_BT], 0)
    ends_BT = jnp.cumsum(lengths_BT, axis=1)
    whole_B = ends_BT[:, -1]
    if not strip:
        return ByteStream(ids_BT, ends_BT, jnp.zeros_like(whole_B), whole_B)
    leading_BT, trailing_BT = tables.leading_V[ids_BT], tables.trailing_V[ids_BT]
    solid_BT = counts_BT & (leading_BT < lengths_BT)
    first_BT = jnp.where(solid_BT, ends_BT - lengths_BT + leading_BT, whole_B[:, None])
    start_B = jnp.min(first_BT, axis=1)
    end_B = jnp.max(jnp.where(solid_BT, ends_BT - trailing_BT, start_B[:, None]), axis=1)
    return ByteStream(ids_BT, ends_BT, start_B, end_B)


def bytes_at(stream: ByteStream, at_BM: Array, tables: ByteTables) -> Array:
    """The bytes at these places, counted from the stream's start; int32 [B, M], -1 outside."""
    inside_BM = (at_BM >= 0) & (at_BM < stream.sizes_B[:, None])
    place_BM = jnp.where(inside_BM, at_BM + stream.start_B[:, None], 0)
    find = lambda ends_T, place_M: jnp.searchsorted(ends_T, place_M, side="right")
    last = stream.ids_BT.shape[1] - 1
    token_BM = jnp.minimum(jax.vmap(find)(stream.ends_BT, place_BM), last)
    ids_BM = jnp.take_along_axis(stream.ids_BT, token_BM, axis=1)
    ends_BM = jnp.take_along_axis(stream.ends_BT, token_BM, axis=1)
    within_BM = place_BM - (ends_BM - tables.lengths_V[ids_BM])
    found_BM = tables.bytes_N[tables.begins_V[ids_BM] + within_BM]
    return jnp.where(inside_BM, found_BM.astype(jnp.int32), -1)
