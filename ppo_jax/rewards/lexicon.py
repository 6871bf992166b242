"""Word-list reward on the device: the valences of a response's words, summed and squashed.

Tokens cut words anywhere, so words are found in bytes: a maximal run of word bytes is a word, any
other byte is a boundary. A word is known by two polynomial hashes of 32 bits each. What a token
does to the hash of the word under way is worked out once on the host, so that no byte stream is
ever unrolled on the device:

- without a boundary it appends its bytes, which is an affine map: hash -> mul * hash + add;
- with a boundary it finishes that word (the same map, of the bytes before its first boundary),
  adds the valences of the words that lie wholly inside it, and starts the next word with the
  bytes after its last boundary.

Affine maps compose associatively: one `associative_scan` over the T tokens gives every hash, at
a cost that does not depend on the length of the tokens.
"""

import importlib.util
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array, Rollout

WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]+")  # bytes from 0x80 are letters beyond ASCII
IS_WORD_256 = np.array([WORD.fullmatch(bytes([byte])) is not None for byte in range(256)])


class HashFamily(NamedTuple):
    """Two polynomial hashes modulo 2^32: h(word + byte) = multiplier * h(word) + mix[byte].

    Without a random `mix` both would have the same lowest bit: the parity of the bytes' sum.
    """

    multipliers_2: np.ndarray  # uint32, odd
    mix_2x256: np.ndarray  # uint32


class LexiconTables(NamedTuple):
    """What the device needs: a row a token, and the W words sorted by their first hash."""

    mul_V2: Array  # uint32, the token's bytes before its first boundary as an affine map
    add_V2: Array  # uint32
    start_V2: Array  # uint32, hash of the bytes after the last boundary
    splits_V: Array  # bool, the token holds a boundary
    inner_V: Array  # float32, valences of the words between the first and the last boundary
    keys_W2: Array  # uint32
    valences_W: Array  # float32


def sentiment(alpha: float = 15.0) -> DeviceReward:
    """Positive sentiment by VADER's lexicon (Hutto and Gilbert, ICWSM 2014), in (-1, 1).

    Squashed as VADER does, without its rules for negation, emphasis and emoticons.
    Raises `ConfigError` if the package vaderSentiment is not installed.
    """
    return lexicon(vader_words(), name="sentiment", alpha=alpha)


def lexicon(words: dict[str, float], name: str = "lexicon", alpha: float = 15.0) -> DeviceReward:
    """The reward s / sqrt(s^2 + alpha), s = sum of the valences of the words in the response.

    Words are maximal runs of ASCII letters, digits and bytes from 0x80, compared without regard
    to the case of ASCII letters; the prompt does not count, but a word of the response that
    continues the prompt's last one counts as if it stood alone. Equal to the same sum in Python
    for every tokenisation, up to a chance of about W / 2^64 a word of taking it for another.
    Raises `ConfigError` for a word that can never match.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"reward {name}: alpha must be a finite number above 0, got {alpha!r}")
    valences = _checked_words(words, name)

    def score(rollout: Rollout, columns: dict[str, Array], tables: LexiconTables) -> Array:
        ids_BT, real_BT = rollout.response_ids_BT, rollout.mask_BT > 0
        inner_B = jnp.sum(jnp.where(real_BT, tables.inner_V[ids_BT], 0.0), axis=-1)
        hashes_BS2 = finished_words(ids_BT, real_BT, tables)
        sum_B = inner_B + jnp.sum(look_up(hashes_BS2, tables), axis=-1)
        return sum_B / jnp.sqrt(sum_B**2 + alpha)

    def make_tables(tokenizer, vocab_size: int) -> LexiconTables:
        return build_tables(*token_bytes(tokenizer, vocab_size), valences)

    return DeviceReward(name, score, make_tables)


def vader_words() -> dict[str, float]:
    """VADER's single words with their mean ratings (-4 to 4); of repeated ones the last counts."""
    package = importlib.util.find_spec("vaderSentiment")
    path = Path(package.origin).parent / "vader_lexicon.txt" if package else None
    if path is None or not path.is_file():
        raise ConfigError(
            "reward sentiment: VADER's lexicon is missing; run `make setup` "
            "or `pip install vaderSentiment`"
        )
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line)
    entries = ((word.lower(), float(valence)) for word, valence, *_ in rows)
    return {word: valence for word, valence in entries if re.fullmatch("[a-z0-9]+", word)}


def finished_words(ids_BT: Array, real_BT: Array, tables: LexiconTables) -> Array:
    """Hashes of the words each token finishes and, last, of the one under way at the end.

    uint32 [B, T+1, 2], 0 where no word ends; a token that is not real changes nothing.
    """
    real_BT1 = real_BT[..., None]
    splits_BT1 = real_BT1 & tables.splits_V[ids_BT][..., None]
    mul_BT2 = jnp.where(real_BT1, tables.mul_V2[ids_BT], 1)
    add_BT2 = jnp.where(real_BT1, tables.add_V2[ids_BT], 0)
    # As a whole, a token with a boundary forgets what came before it.
    whole = (
        jnp.where(splits_BT1, 0, mul_BT2),
        jnp.where(splits_BT1, tables.start_V2[ids_BT], add_BT2),
    )
    _, after_BT2 = lax.associative_scan(_compose, whole, axis=-2)
    before_BT2 = jnp.concatenate(
        [jnp.zeros_like(after_BT2[..., :1, :]), after_BT2[..., :-1, :]], axis=-2
    )
    finished_BT2 = jnp.where(splits_BT1, mul_BT2 * before_BT2 + add_BT2, 0)
    return jnp.concatenate([finished_BT2, after_BT2[..., -1:, :]], axis=-2)


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    (mul, add), (next_mul, next_add) = first, second
    return next_mul * mul, next_mul * add + next_add


def look_up(hashes_BS2: Array, tables: LexiconTables) -> Array:
    """Valences [B, S] of hashed words, 0 for those not in the lexicon."""
    rows_BS = jnp.searchsorted(tables.keys_W2[:, 0], hashes_BS2[..., 0])
    rows_BS = jnp.minimum(rows_BS, tables.keys_W2.shape[0] - 1)
    known_BS = jnp.all(tables.keys_W2[rows_BS] == hashes_BS2, axis=-1)
    return jnp.where(known_BS, tables.valences_W[rows_BS], 0.0)


def build_tables(
    bytes_VN: np.ndarray,
    lengths_V: np.ndarray,
    valences: dict[bytes, float],
    families: Iterable[HashFamily] | None = None,
) -> LexiconTables:
    """Tables for a vocabulary given as bytes (uint8, `lengths_V` of each row count).

    The first family whose first hash tells all words apart is taken.
    Raises `ConfigError` if none does.
    """
    words_WN, lengths_W = _pack(list(valences))
    values_W = np.array(list(valences.values()), np.float32)
    for family in default_families() if families is None else families:
        inside_WN = np.arange(words_WN.shape[1]) < lengths_W[:, None]
        _, keys_W2 = _affine(words_WN, inside_WN, family)
        order_W = np.argsort(keys_W2[:, 0])
        firsts_W = keys_W2[order_W, 0]
        # A first hash of 0 stands for "no word ends here".
        if firsts_W[0] != 0 and np.all(firsts_W[1:] != firsts_W[:-1]):
            break
    else:
        raise ConfigError("reward: the lexicon's words collide under every hash tried")
    tokens = _token_tables(bytes_VN, lengths_V, valences, family)
    return LexiconTables(**tokens, keys_W2=keys_W2[order_W], valences_W=values_W[order_W])


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


def _token_tables(bytes_VN, lengths_V, valences: dict[bytes, float], family: HashFamily) -> dict:
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
    inner_VN = word_VN & ~before_VN & ~after_VN
    mul_V2, add_V2 = _affine(lowered_VN, before_VN, family)
    inner_V = np.zeros(len(bytes_VN), np.float32)
    for token in np.flatnonzero(inner_VN.any(1)):
        between = lowered_VN[token, first_V[token] : last_V[token]].tobytes()
        inner_V[token] = math.fsum(valences.get(word, 0.0) for word in WORD.findall(between))
    return {
        "mul_V2": mul_V2,
        "add_V2": add_V2,
        "start_V2": _affine(lowered_VN, after_VN, family)[1],
        "splits_V": splits_V,
        "inner_V": inner_V,
    }


def _affine(bytes_VN, mask_VN, family: HashFamily) -> tuple[np.ndarray, np.ndarray]:
    """The map hash -> mul * hash + add that appends each row's masked bytes; add = their hash."""
    mul_V2 = np.ones((len(bytes_VN), 2), np.uint32)
    add_V2 = np.zeros((len(bytes_VN), 2), np.uint32)
    for column in np.flatnonzero(mask_VN.any(0)):
        rows = mask_VN[:, column]
        mix_R2 = family.mix_2x256.T[bytes_VN[rows, column]]
        mul_V2[rows] *= family.multipliers_2
        add_V2[rows] = add_V2[rows] * family.multipliers_2 + mix_R2
    return mul_V2, add_V2


def _pack(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths_W = np.array([len(word) for word in words])
    padded = b"".join(word.ljust(lengths_W.max(), b"\0") for word in words)
    return np.frombuffer(padded, np.uint8).reshape(len(words), -1), lengths_W


def _ascii_lower(bytes_VN: np.ndarray) -> np.ndarray:
    upper_VN = (bytes_VN >= ord("A")) & (bytes_VN <= ord("Z"))
    return np.where(upper_VN, bytes_VN + np.uint8(32), bytes_VN)


def _checked_words(words: dict[str, float], name: str) -> dict[bytes, float]:
    valences: dict[bytes, float] = {}
    for word, valence in words.items():
        key = word.encode().lower()  # bytes: ASCII letters only
        if WORD.fullmatch(key) is None:
            raise ConfigError(
                f"reward {name}: {word!r} can never match: words are runs of letters and digits"
            )
        if not math.isfinite(valence):
            raise ConfigError(f"reward {name}: the valence of {word!r} is {valence}, not finite")
        if valences.setdefault(key, float(valence)) != valence:
            raise ConfigError(f"reward {name}: {word!r} is given twice, with different valences")
    if not valences:
        raise ConfigError(f"reward {name}: the lexicon is empty")
    return valences
