"""Hashes of words, and what bytes do to them: affine maps, which compose associatively."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ppo_jax.errors import ConfigError
from ppo_jax.types import Array

WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]+")  # bytes from 0x80 are letters beyond ASCII
IS_WORD_256 = np.array([WORD.fullmatch(bytes([byte])) is not None for byte in range(256)])


class HashFamily(NamedTuple):
    """Two polynomial hashes modulo 2^32: h(word + byte) = multiplier * h(word) + mix[byte].

    Without a random `mix` both would have the same lowest bit: the parity of the bytes' sum.
    """

    multipliers_2: np.ndarray  # uint32, odd
    mix_2x256: np.ndarray  # uint32


class TokenParts(NamedTuple):
    """A vocabulary's bytes, cut at each token's boundaries."""

    lowered_VN: np.ndarray  # uint8, ASCII letters in lower case
    splits_V: np.ndarray  # bool, the token holds a boundary
    before_VN: np.ndarray  # bool, word bytes before its first boundary; all, where it has none
    after_VN: np.ndarray  # bool, word bytes after its last boundary
    inner: dict[int, list[bytes]]  # words that lie wholly inside, of the tokens that have some


def token_parts(bytes_VN: np.ndarray, lengths_V: np.ndarray) -> TokenParts:
    """Of a vocabulary given as bytes (uint8, `lengths_V` of each row count)."""
    lowered_VN = _ascii_lower(bytes_VN)
    position_N = np.arange(bytes_VN.shape[1])
    inside_VN = position_N < lengths_V[:, None]
    word_VN = IS_WORD_256[bytes_VN] & inside_VN
    boundary_VN = ~IS_WORD_256[bytes_VN] & inside_VN
    splits_V = boundary_VN.any(1)
    first_V = np.where(splits_V, boundary_VN.argmax(1), lengths_V)
    last_V = np.where(splits_V, len(position_N) - 1 - boundary_VN[:, ::-1].argmax(1), lengths_V)
    before_VN = word_VN & (position_N < first_V[:, None])
    after_VN = word_VN & (position_N > last_V[:, None])
    inner = {}
    for token in np.flatnonzero((word_VN & ~before_VN & ~after_VN).any(1)).tolist():
        between = lowered_VN[token, first_V[token] : last_V[token]].tobytes()
        inner[token] = WORD.findall(between)
    return TokenParts(lowered_VN, splits_V, before_VN, after_VN, inner)


def hash_keys(
    keys: Sequence[bytes], families: Iterable[HashFamily] | None = None
) -> tuple[HashFamily, np.ndarray, np.ndarray]:
    """(the first family whose first hash tells all keys apart, the keys' hashes uint32 [W, 2]
    sorted by the first one, the order of the keys that this is).

    Raises `ConfigError` if there is no such family.
    """
    keys_WN, lengths_W = pack(keys)
    inside_WN = np.arange(keys_WN.shape[1]) < lengths_W[:, None]
    for family in default_families() if families is None else families:
        _, keys_W2 = affine(keys_WN, inside_WN, family)
        order_W = np.argsort(keys_W2[:, 0])
        firsts_W = keys_W2[order_W, 0]
        # A first hash of 0 stands for "no word ends here".
        if firsts_W[0] != 0 and np.all(firsts_W[1:] != firsts_W[:-1]):
            return family, keys_W2[order_W], order_W
    raise ConfigError("reward: the lexicon's words collide under every hash tried")


def find(hashes_BS2: Array, keys_W2: Array) -> tuple[Array, Array]:
    """(rows of `hash_keys`' keys, bool: whether that is the key) [B, S] of hashed words."""
    rows_BS = jnp.searchsorted(keys_W2[:, 0], hashes_BS2[..., 0])
    rows_BS = jnp.minimum(rows_BS, keys_W2.shape[0] - 1)
    return rows_BS, jnp.all(keys_W2[rows_BS] == hashes_BS2, axis=-1)


def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map `first`, then the map `second`; each (mul, add): hash -> mul * hash + add."""
    (mul, add), (next_mul, next_add) = first, second
    return next_mul * mul, next_mul * add + next_add


def default_families(count: int = 16) -> Iterable[HashFamily]:
    """Fixed pseudo-random hash families: the same in every run and on every machine."""
    for number in range(count):
        stream = splitmix64(2 + 2 * 256, seed=number)
        # 5 modulo 8: the powers of such a multiplier repeat as late as any modulo 2^32 can.
        multipliers_2 = (stream[:2] & np.uint32(0xFFFFFFF8)) | np.uint32(5)
        yield HashFamily(multipliers_2, stream[2:].reshape(2, 256))


def splitmix64(count: int, seed: int) -> np.ndarray:
    """Upper halves (uint32) of the SplitMix64 sequence (Steele et al., OOPSLA 2014)."""
    steps = np.arange(1 + count * seed, 1 + count * (seed + 1), dtype=np.uint64)
    z = steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def affine(bytes_VN, mask_VN, family: HashFamily) -> tuple[np.ndarray, np.ndarray]:
    """The map hash -> mul * hash + add that appends each row's masked bytes; add = their hash."""
    mul_V2 = np.ones((len(bytes_VN), 2), np.uint32)
    add_V2 = np.zeros((len(bytes_VN), 2), np.uint32)
    for column in np.flatnonzero(mask_VN.any(0)):
        rows = mask_VN[:, column]
        mix_R2 = family.mix_2x256.T[bytes_VN[rows, column]]
        mul_V2[rows] *= family.multipliers_2
        add_V2[rows] = add_V2[rows] * family.multipliers_2 + mix_R2
    return mul_V2, add_V2


def pack(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths_W = np.array([len(word) for word in words])
    padded = b"".join(word.ljust(lengths_W.max(), b"\0") for word in words)
    return np.frombuffer(padded, np.uint8).reshape(len(words), -1), lengths_W


def _ascii_lower(bytes_VN: np.ndarray) -> np.ndarray:
    upper_VN = (bytes_VN >= ord("A")) & (bytes_VN <= ord("Z"))
    return np.where(upper_VN, bytes_VN + np.uint8(32), bytes_VN)
