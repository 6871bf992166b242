"""Keys of several words, found among a response's words on the device.

A word is known by its hash and by what it does to the hash of the words before it, multiplying it
by a power of the family's multiplier: so the hash of "not good" comes from those of "not" and
"good", as that of a word comes from its tokens. Every token has room for the word that its first
boundary finishes and for those that lie wholly inside it, though most have none; what follows a
word is the next place that has one.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.rewards.word_hashes import affine, compose, find, hash_keys, pack, token_parts
from ppo_jax.types import Array

MAX_WORDS = 8  # of a key
SPACE = ord(" ")


class PhraseTables(NamedTuple):
    """What the device needs: a row a token, the I words inside tokens one after another, and the W
    keys sorted by their first hash. All uint32 but where said."""

    mul_V2: Array  # the token's bytes before its first boundary as an affine map
    add_V2: Array
    start_mul_V2: Array  # its bytes after the last boundary
    start_add_V2: Array
    splits_V: Array  # bool, the token holds a boundary
    begins_V: Array  # int32, where in the words inside tokens its own begin
    counts_V: Array  # int32, how many they are
    places_K: Array  # int32, 0 to K-1: no token has more than K
    mul_I2: Array  # words inside tokens
    add_I2: Array
    space_mul_2: Array  # a space between words
    space_add_2: Array
    keys_W2: Array
    valences_W: Array  # float32


class Words(NamedTuple):
    """Places [B, S] of a response, which have a word or none, as affine maps."""

    there_BS: Array
    mul_BS2: Array
    add_BS2: Array  # the word's own hash


def phrase_tables(
    bytes_VN: np.ndarray, lengths_V: np.ndarray, valences: dict[bytes, float]
) -> PhraseTables:
    """Tables for a vocabulary given as bytes (uint8, `lengths_V` of each row count), and keys whose
    words have a space between them. Raises `ConfigError` as `hash_keys` does."""
    family, keys_W2, order_W = hash_keys(list(valences))
    values_W = np.array(list(valences.values()), np.float32)[order_W]
    parts = token_parts(bytes_VN, lengths_V)
    counts_V = np.zeros(len(bytes_VN), np.int32)
    counts_V[list(parts.inner)] = [len(words) for words in parts.inner.values()]
    # One more that no token has: it is looked up in, and so never empty.
    inner_IN, lengths_I = pack([word for words in parts.inner.values() for word in words] + [b""])
    inner = affine(inner_IN, np.arange(inner_IN.shape[1]) < lengths_I[:, None], family)
    tables: Any = (
        *affine(parts.lowered_VN, parts.before_VN, family),
        *affine(parts.lowered_VN, parts.after_VN, family),
        parts.splits_V,
        (np.cumsum(counts_V) - counts_V).astype(np.int32),
        counts_V,
        np.arange(counts_V.max(initial=0), dtype=np.int32),
        *inner,
        family.multipliers_2,
        family.mix_2x256[:, SPACE],
        keys_W2,
        values_W,
    )
    return PhraseTables(*tables)


def sum_of_longest(
    ids_BT: Array, real_BT: Array, tables: PhraseTables, sizes: tuple[int, ...]
) -> Array:
    """The valences [B] of the keys in each response, summed: at each word from left to right that
    of the longest key that begins there, whose words then count for no other.

    `sizes` are the numbers of words that keys have; a token that is not real changes nothing.
    """
    words = words_of(ids_BT, real_BT, tables)
    longest_BS, valences_BS = _longest(words, tables, sizes)
    taken_BS = _taken(words.there_BS, longest_BS, max(sizes))
    return jnp.sum(jnp.where(taken_BS, 0.0, valences_BS), axis=-1)


def words_of(ids_BT: Array, real_BT: Array, tables: PhraseTables) -> Words:
    """The words of each response in order, at S = T * (1 + K) + 1 places: of each token the one it
    finishes and those inside it, and last the one under way at the end."""
    real_BT1 = real_BT[..., None]
    splits_BT1 = real_BT1 & tables.splits_V[ids_BT][..., None]
    mul_BT2 = jnp.where(real_BT1, tables.mul_V2[ids_BT], 1)
    add_BT2 = jnp.where(real_BT1, tables.add_V2[ids_BT], 0)
    # The word under way as an affine map, its mul and its add by one more map each: a token without
    # a boundary appends its bytes, one with a boundary forgets what came before it.
    start_BT4 = jnp.concatenate([tables.start_mul_V2[ids_BT], tables.start_add_V2[ids_BT]], axis=-1)
    own_BT4 = jnp.concatenate([jnp.zeros_like(add_BT2), add_BT2], axis=-1)
    whole = (
        jnp.where(splits_BT1, 0, jnp.concatenate([mul_BT2, mul_BT2], axis=-1)),
        jnp.where(splits_BT1, start_BT4, own_BT4),
    )
    scale_BT4, shift_BT4 = lax.associative_scan(compose, whole, axis=-2)
    after_mul_BT2 = scale_BT4[..., :2] + shift_BT4[..., :2]  # from no bytes: mul 1, add 0
    after_add_BT2 = shift_BT4[..., 2:]
    before = lambda x_BT2, first: jnp.pad(x_BT2, ((0, 0), (1, 0), (0, 0)), constant_values=first)
    finished_mul_BT2 = mul_BT2 * before(after_mul_BT2, 1)[:, :-1]
    finished_add_BT2 = mul_BT2 * before(after_add_BT2, 0)[:, :-1] + add_BT2

    counts_BT1 = jnp.where(real_BT, tables.counts_V[ids_BT], 0)[..., None]
    inside_BTK = tables.places_K[None, None] < counts_BT1
    at_BTK = tables.begins_V[ids_BT][..., None] + tables.places_K[None, None]
    at_BTK = jnp.where(inside_BTK, at_BTK, 0)

    def in_line(finished_BTx: Array, inner_BTKx: Array, last_Bx: Array) -> Array:
        """[B, S, ...] of what each token finishes, holds, and of the end."""
        both = jnp.concatenate([finished_BTx[:, :, None], inner_BTKx], axis=2)
        both = both.reshape(both.shape[0], -1, *both.shape[3:])
        return jnp.concatenate([both, last_Bx[:, None]], axis=1)

    # A word's mul is a power of a multiplier, 1 for no byte alone.
    is_word = lambda mul: mul[..., 0] != 1
    ended_BT = splits_BT1[..., 0] & is_word(finished_mul_BT2)
    return Words(
        in_line(ended_BT, inside_BTK, is_word(after_mul_BT2[:, -1])),
        in_line(finished_mul_BT2, tables.mul_I2[at_BTK], after_mul_BT2[:, -1]),
        in_line(finished_add_BT2, tables.add_I2[at_BTK], after_add_BT2[:, -1]),
    )


def _longest(words: Words, tables: PhraseTables, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """(words of the longest key that begins at each place, 0: none; its valence) [B, S]."""
    there_BS = words.there_BS
    S = there_BS.shape[1]
    place_BS = lax.broadcasted_iota(jnp.int32, there_BS.shape, 1)
    next_BS = lax.cummin(jnp.where(there_BS, place_BS, S), axis=1, reverse=True)
    next_BS = jnp.pad(next_BS, ((0, 0), (0, 2)), constant_values=S)[
        :, 1:
    ]  # after each place, and S
    maps_BS4 = jnp.concatenate([words.mul_BS2, words.add_BS2], axis=-1)
    space_mul_112, space_add_112 = tables.space_mul_2[None, None], tables.space_add_2[None, None]

    hash_BS2, end_BS = words.add_BS2, place_BS
    longest_BS, valences_BS = jnp.zeros_like(place_BS), jnp.zeros(place_BS.shape, jnp.float32)
    for size in range(1, max(sizes) + 1):
        if size > 1:
            end_BS = jnp.take_along_axis(next_BS, end_BS, axis=1)
            at_BS1 = jnp.minimum(end_BS, S - 1)[..., None]
            more_BS4 = jnp.take_along_axis(maps_BS4, at_BS1, axis=1)
            hash_BS2 = hash_BS2 * space_mul_112 + space_add_112
            hash_BS2 = hash_BS2 * more_BS4[..., :2] + more_BS4[..., 2:]
        if size in sizes:
            rows_BS, known_BS = find(hash_BS2, tables.keys_W2)
            known_BS = known_BS & there_BS & (end_BS < S)
            longest_BS = jnp.where(known_BS, size, longest_BS)
            valences_BS = jnp.where(known_BS, tables.valences_W[rows_BS], valences_BS)
    return longest_BS, valences_BS


def _taken(there_BS: Array, longest_BS: Array, most: int) -> Array:
    """Whether a word belongs to a key that began before it; bool [B, S].

    What counts is how many words are still to come of a key: each place maps that number to the
    one after it, and such maps compose associatively.
    """
    left_n = jnp.arange(most, dtype=jnp.int32)[None, None]
    begun_BSn = jnp.maximum(longest_BS - 1, 0)[..., None]
    after_BSn = jnp.where(left_n > 0, left_n - 1, begun_BSn)
    after_BSn = jnp.where(there_BS[..., None], after_BSn, left_n)
    follow = lambda first, second: jnp.take_along_axis(second, first, axis=-1)
    left_BS = lax.associative_scan(follow, after_BSn, axis=1)[..., 0]
    return jnp.pad(left_BS, ((0, 0), (1, 0)))[:, :-1] > 0
