"""Text on the device for environments: observations put together from pieces, actions read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ppo_jax.envs.base import Observation
from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array

DIGITS = 9  # of the largest number that is read: int32 holds it


class Pieces(NamedTuple):
    """K short texts as ids of at most L tokens each."""

    ids_KL: Array  # int32
    lengths_K: Array  # int32


class Spelling(NamedTuple):
    """The bytes of each id, as decoded text has them."""

    bytes_VN: Array  # uint8
    lengths_V: Array  # int32


def encode_pieces(tokenizer: Any, texts: Sequence[str]) -> Pieces:
    """NumPy arrays; each text is encoded on its own."""
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    lengths_K = np.array([len(row) for row in rows], np.int32)
    ids_KL = np.zeros((len(rows), max(1, lengths_K.max())), np.int32)
    for ids_L, row in zip(ids_KL, rows, strict=True):
        ids_L[: len(row)] = row
    return Pieces(ids_KL, lengths_K)  # pyright: ignore[reportArgumentType]


def say(*parts: tuple[Pieces, Array]) -> Observation:
    """The chosen pieces one after another: of each part, those that its index (of any shape) has in
    its order. As wide as they can be at most."""
    ids, real = [], []
    for pieces, index in parts:
        index_M, L = index.reshape(-1), pieces.ids_KL.shape[1]
        ids.append(pieces.ids_KL[index_M].reshape(-1))
        there_ML = jnp.arange(L)[None] < pieces.lengths_K[index_M][:, None]
        real.append(there_ML.reshape(-1))
    ids_O, real_O = jnp.concatenate(ids), jnp.concatenate(real)
    place_O = jnp.where(real_O, jnp.cumsum(real_O) - 1, ids_O.shape[0])
    joined_O = jnp.zeros_like(ids_O).at[place_O].set(ids_O, mode="drop")
    return Observation(joined_O, real_O.sum(dtype=jnp.int32))


def spell(tokenizer: Any, vocab_size: int) -> Spelling:
    """NumPy arrays, see `tokenizer.token_bytes`."""
    return Spelling(*token_bytes(tokenizer, vocab_size))  # pyright: ignore[reportArgumentType]


def _action_bytes(spelling: Spelling, ids_A: Array, length: Array) -> tuple[Array, Array]:
    """(bytes of an action, int32, which of them are there), in order, with gaps."""
    (A,), N = ids_A.shape, spelling.bytes_VN.shape[1]
    there_AN = jnp.arange(N)[None] < spelling.lengths_V[ids_A][:, None]
    there_AN &= (jnp.arange(A) < length)[:, None]
    return spelling.bytes_VN[ids_A].reshape(-1).astype(jnp.int32), there_AN.reshape(-1)


def first_letter(spelling: Spelling, ids_A: Array, length: Array) -> Array:
    """The first byte of an action that is no ASCII space, in lower case if a letter; int32, 0 where
    there is none."""
    bytes_N, there_N = _action_bytes(spelling, ids_A, length)
    space_N = (bytes_N == ord(" ")) | ((bytes_N >= ord("\t")) & (bytes_N <= ord("\r")))
    said_N = there_N & ~space_N
    letter = jnp.where(said_N.any(), bytes_N[jnp.argmax(said_N)], 0)
    return jnp.where((letter >= ord("A")) & (letter <= ord("Z")), letter + 32, letter)


def first_number(spelling: Spelling, ids_A: Array, length: Array) -> Array:
    """The first run of ASCII digits in an action, as a number; int32, -1 where there is none or it
    has more than `DIGITS` digits."""
    bytes_N, there_N = _action_bytes(spelling, ids_A, length)
    digit_N = there_N & (bytes_N >= ord("0")) & (bytes_N <= ord("9"))
    begun_N = jnp.cumsum(digit_N) > 0
    ended_N = jnp.cumsum(begun_N & there_N & ~digit_N) > 0
    inside_N = digit_N & ~ended_N
    count = inside_N.sum()
    place_N = count - jnp.cumsum(inside_N)  # digits that follow
    power_N = 10 ** jnp.clip(place_N, 0, DIGITS - 1)
    number = jnp.sum(jnp.where(inside_N, (bytes_N - ord("0")) * power_N, 0))
    return jnp.where((count > 0) & (count <= DIGITS), number, -1).astype(jnp.int32)
