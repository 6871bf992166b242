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
a cost that does not depend on the length of the tokens. Keys of several words: see `phrases`.
"""

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.errors import ConfigError
from ppo_jax.returned import MAX_FLOAT32, as_code
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.checks import is_number
from ppo_jax.rewards.phrases import MAX_WORDS, PhraseTables, phrase_tables, sum_of_longest
from ppo_jax.rewards.word_hashes import (
    WORD,
    HashFamily,
    affine,
    compose,
    find,
    hash_keys,
    token_parts,
)
from ppo_jax.tokenizer import token_bytes
from ppo_jax.types import Array, Rollout


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

    A key may be several words, `MAX_WORDS` at most, a space between them ("not good"): so many
    words of the response one after another, whatever stands between them ("not: GOOD"). Of keys
    that begin at one word the longest counts, from left to right, and the words it takes count for
    no other: with "not good", "not" and "good", the text "not good" has one key, whatever its
    valence, and "not very good" two.

    Raises `ConfigError` for a key that can never match, and for a valence that is no finite number
    or beyond float32.
    """
    if not is_number(alpha) or not 0 < alpha <= MAX_FLOAT32:
        raise ConfigError(
            f"reward {name}: alpha is {_shown(alpha)}; expected a finite number above 0 (15.0)"
        )
    valences = _checked_words(words, name)
    if any(b" " in key for key in valences):
        return _of_phrases(valences, name, alpha)

    def score(rollout: Rollout, columns: dict[str, Array], tables: LexiconTables) -> Array:
        ids_BT, real_BT = rollout.response_ids_BT, rollout.mask_BT > 0
        inner_B = jnp.sum(jnp.where(real_BT, tables.inner_V[ids_BT], 0.0), axis=-1)
        hashes_BS2 = finished_words(ids_BT, real_BT, tables)
        sum_B = inner_B + jnp.sum(look_up(hashes_BS2, tables), axis=-1)
        return _squash(sum_B, alpha)

    def make_tables(tokenizer, vocab_size: int) -> LexiconTables:
        return build_tables(*token_bytes(tokenizer, vocab_size), valences)

    return DeviceReward(name, score, make_tables)


def _of_phrases(valences: dict[bytes, float], name: str, alpha: float) -> DeviceReward:
    sizes = tuple(sorted({key.count(b" ") + 1 for key in valences}))

    def score(rollout: Rollout, columns: dict[str, Array], tables: PhraseTables) -> Array:
        ids_BT, real_BT = rollout.response_ids_BT, rollout.mask_BT > 0
        return _squash(sum_of_longest(ids_BT, real_BT, tables, sizes), alpha)

    def make_tables(tokenizer, vocab_size: int) -> PhraseTables:
        return phrase_tables(*token_bytes(tokenizer, vocab_size), valences)

    return DeviceReward(name, score, make_tables)


def _squash(sum_B: Array, alpha: float) -> Array:
    return sum_B / jnp.sqrt(sum_B**2 + alpha)


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
    _, after_BT2 = lax.associative_scan(compose, whole, axis=-2)
    before_BT2 = jnp.concatenate(
        [jnp.zeros_like(after_BT2[..., :1, :]), after_BT2[..., :-1, :]], axis=-2
    )
    finished_BT2 = jnp.where(splits_BT1, mul_BT2 * before_BT2 + add_BT2, 0)
    return jnp.concatenate([finished_BT2, after_BT2[..., -1:, :]], axis=-2)


def look_up(hashes_BS2: Array, tables: LexiconTables) -> Array:
    """Valences [B, S] of hashed words, 0 for those not in the lexicon."""
    rows_BS, known_BS = find(hashes_BS2, tables.keys_W2)
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
    family, keys_W2, order_W = hash_keys(list(valences), families)
    values_W: Any = np.array(list(valences.values()), np.float32)[order_W]
    tokens = _token_tables(bytes_VN, lengths_V, valences, family)
    return LexiconTables(**tokens, keys_W2=keys_W2, valences_W=values_W)


def _token_tables(bytes_VN, lengths_V, valences: dict[bytes, float], family: HashFamily) -> dict:
    parts = token_parts(bytes_VN, lengths_V)
    mul_V2, add_V2 = affine(parts.lowered_VN, parts.before_VN, family)
    inner_V = np.zeros(len(bytes_VN), np.float32)
    for token, words in parts.inner.items():
        inner_V[token] = math.fsum(valences.get(word, 0.0) for word in words)
    return {
        "mul_V2": mul_V2,
        "add_V2": add_V2,
        "start_V2": affine(parts.lowered_VN, parts.after_VN, family)[1],
        "splits_V": parts.splits_V,
        "inner_V": inner_V,
    }


def _checked_words(words: dict[str, float], name: str) -> dict[bytes, float]:
    if not isinstance(words, Mapping):
        raise ConfigError(
            f"reward {name}: words is a {type(words).__name__}; expected a dict of words and their "
            "valences, such as {'good': 1.0}"
        )
    valences: dict[bytes, float] = {}
    for word, valence in words.items():
        if not isinstance(word, str):
            raw = word if isinstance(word, bytes) else as_code(word).encode()
            near = b" ".join(WORD.findall(raw[:40])[:MAX_WORDS]).decode("utf-8", "replace")
            raise ConfigError(
                f"reward {name}: the word {as_code(word)[:40]} is of type {type(word).__name__}; "
                f"expected a string, such as {near or 'good'!r}"
            )
        if not is_number(valence) or abs(valence) > MAX_FLOAT32:
            raise ConfigError(
                f"reward {name}: the valence of {word!r} is {_shown(valence)}; expected a finite "
                f"number; nearest valid: {_nearest(valence):g}"
            )
        parts = word.encode().lower().split(b" ")  # bytes: ASCII letters only
        if not all(map(WORD.fullmatch, parts)):
            near = b" ".join(WORD.findall(word.encode())).decode()
            hint = f"; nearest valid: {near!r}" if near else ""
            raise ConfigError(
                f"reward {name}: {word!r} can never match: words are runs of letters and digits, "
                f"several have one space between them{hint}"
            )
        if len(parts) > MAX_WORDS:
            raise ConfigError(
                f"reward {name}: {word!r} has {len(parts)} words; expected at most {MAX_WORDS}"
            )
        if valences.setdefault(b" ".join(parts), float(valence)) != valence:
            raise ConfigError(f"reward {name}: {word!r} is given twice, with different valences")
    if not valences:
        raise ConfigError(f"reward {name}: the lexicon is empty")
    return valences


def _shown(value: Any) -> str:
    too_large = is_number(value) and abs(value) > MAX_FLOAT32
    return "beyond float32" if too_large else as_code(value)[:40]


def _nearest(value: Any) -> float:
    try:
        number = float(value)
        return 0.0 if math.isnan(number) else max(-MAX_FLOAT32, min(number, MAX_FLOAT32))
    except OverflowError:
        return math.copysign(MAX_FLOAT32, value > 0 or -1)
    except (TypeError, ValueError):
        return 0.0
