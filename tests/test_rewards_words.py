"""Words counted on the device against `bytes.split`."""

import random

import jax
import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.words import WordTables, count_words, target_words, word_tables
from ppo_jax.tokenizer import byte_tokenizer
from reward_rows import make_rollout

T = 20
PIECES = [
    b"",
    b"a",
    b" ",
    b"ab",
    b" a",
    b"a ",
    b" a ",
    b"a b",
    b"a  b c",
    b"\n",
    b"\t ",
    b"\xc3\xa4",
]


def piece_tables() -> WordTables:
    """Of a vocabulary whose tokens are `PIECES`, by counting in Python."""
    begun = [max(len((b"x" + piece).split()) - 1, 0) for piece in PIECES]
    return WordTables(
        np.array(begun, np.int32),
        np.array([piece[:1].strip() != b"" for piece in PIECES]),
        np.array([piece[-1:].strip() != b"" for piece in PIECES]),
        np.array([piece != b"" for piece in PIECES]),
    )


def test_equals_split_for_any_tokenisation():
    rng = random.Random(0)
    rows = [[rng.randrange(len(PIECES)) for _ in range(rng.randrange(T))] for _ in range(600)]
    ended = [rng.random() < 0.5 for _ in rows]
    tables = WordTables(*(np.append(x, [x[1]] * 300) for x in piece_tables()))  # a stop token too
    junk = np.full((len(rows), T), PIECES.index(b"a b"))
    counts_B = jax.jit(count_words)(make_rollout(rows, T, ended=ended, junk=junk), tables)
    wanted = [len(b"".join(PIECES[i] for i in row).split()) for row in rows]
    np.testing.assert_array_equal(counts_B, wanted)
    assert counts_B.dtype == np.float32 and max(wanted) > 8


def test_bytes_of_texts_and_the_target_of_each_prompt():
    texts = ["", "one", " two  words ", "fünf\tWörter sind\nes nun", "a b c", "a b c"]
    rows = [list(text.encode()) for text in texts]
    targets = np.array([2, 1, 2, 4, 4, 3], np.int32)
    tables = word_tables(byte_tokenizer(), 259)
    rollout = make_rollout(rows, 30)
    near = jax.jit(target_words("words").fn)(rollout, {"words": targets}, tables)
    np.testing.assert_allclose(near, [0, 1, 1, 0.75, 0.75, 1])
    exact = jax.jit(target_words("words", width=1).fn)(rollout, {"words": targets}, tables)
    np.testing.assert_array_equal(exact, [0, 1, 1, 0, 0, 1])


def test_options_are_those_of_lengths():
    with pytest.raises(ConfigError, match="reward target_words: words must be .* above 0"):
        target_words(0)
    with pytest.raises(ConfigError, match="words names no column"):
        target_words("")
