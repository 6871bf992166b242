"""The word-list reward against the same sum in plain Python, for any tokenisation."""

import math
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax.errors import ConfigError
from ppo_jax.rewards import lexicon as module
from ppo_jax.rewards.lexicon import HashFamily, build_tables, lexicon, sentiment, vader_words
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer, token_bytes
from ppo_jax.types import Rollout

SMOLLM2 = Path("~/.cache/ppo_jax/models/smollm2-135m").expanduser()
SIZE, T = 512, 96  # one compiled shape for most tests
EOS = 257
REWARD = sentiment()
VADER = {word.encode(): valence for word, valence in vader_words().items()}
score = jax.jit(REWARD.fn)


def python_score(text: bytes, words: dict[bytes, float], alpha: float = 15.0) -> float:
    found = re.findall(rb"[A-Za-z0-9\x80-\xff]+", text)
    total = sum(words.get(word.lower(), 0.0) for word in found)  # bytes.lower: ASCII letters only
    return total / math.sqrt(total**2 + alpha)


def make_rollout(rows: list[list[int]], length: int, pad: int = EOS, junk=None) -> Rollout:
    size = len(rows)
    ids_BT = np.full((size, length), pad, np.int32) if junk is None else junk.astype(np.int32)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = ids
    lengths_B = np.array([len(ids) for ids in rows], np.int32)
    mask_BT = (np.arange(length) < lengths_B[:, None]).astype(np.float32)
    prompt_BP = np.full((size, 4), ord("a"), np.int32)
    zeros_BT = np.zeros((size, length), np.float32)
    ended_B, steps_B = lengths_B < 0, np.zeros(size, np.float32)
    first = prompt_BP, prompt_BP > 0, ids_BT, mask_BT, lengths_B
    return Rollout(*first, ended_B, zeros_BT, None, None, steps_B)


def python_split(rng: random.Random, text: bytes, pieces: dict[bytes, int]) -> list[int]:
    """Random tokenisation: at each place any of the vocabulary's pieces that fits."""
    longest = max(map(len, pieces))
    ids, at = [], 0
    while at < len(text):
        fits = [n for n in range(1, longest + 1) if text[at : at + n] in pieces]
        size = rng.choice(fits)
        ids.append(pieces[text[at : at + size]])
        at += size
    return ids


def random_texts(rng: random.Random, count: int, limit: int) -> list[bytes]:
    """Lexicon words and near-misses, glued and separated at random, at most `limit` bytes."""
    words = sorted(word.decode() for word in VADER)
    other = "the Hotel don't é naïve 😀 日本 \u2019 \u2014 İ ß 0 42".split() + [""]
    between = "/ / / /, /. /-/'//\n\n/  /!!!/_/\t/\0/…/@[".split("/")
    texts = []
    for _ in range(count):
        text = ""
        for _ in range(rng.randrange(14)):
            word = rng.choice(words)
            kind = rng.randrange(8)
            if kind == 0:
                word = rng.choice(other)
            elif kind == 1:  # near misses: cut, doubled letter, foreign letter
                word = rng.choice([word[:-1], word + word[-1], word + "é", "x" + word])
            elif kind == 2:
                word = word.upper()
            elif kind == 3:
                word = "".join(c.upper() if rng.randrange(2) else c for c in word)
            text += word + rng.choice(between)
        texts.append(text.encode()[:limit])
    return texts


def scores_of(rows: list[list[int]], tables, length: int = T, **options) -> np.ndarray:
    """Scores of any number of rows, in batches of one shape."""
    out = []
    for start in range(0, len(rows), SIZE):
        batch = rows[start : start + SIZE]
        batch = batch + [[]] * (SIZE - len(batch))
        out.append(np.asarray(score(make_rollout(batch, length, **options), {}, tables)))
    return np.concatenate(out)[: len(rows)]


def expected_of(texts: list[bytes]) -> np.ndarray:
    return np.array([python_score(text, VADER) for text in texts])


@pytest.fixture(scope="module")
def byte_tables():
    return REWARD.make_tables(byte_tokenizer(), 300)


def test_equals_python_on_bytes(byte_tables):
    texts = random_texts(random.Random(0), 4096, T)
    expected = expected_of(texts)
    assert np.mean(expected != 0) > 0.8  # the texts do exercise the lexicon
    np.testing.assert_allclose(
        scores_of([list(t) for t in texts], byte_tables), expected, atol=1e-6
    )


def test_every_word_of_the_lexicon(byte_tables):
    texts = [word for entry in VADER for word in (entry, entry.upper() + b".")]
    expected = expected_of(texts)
    assert np.all(expected != 0)
    np.testing.assert_allclose(
        scores_of([list(t) for t in texts], byte_tables), expected, atol=1e-6
    )


def test_equals_python_for_random_tokenisations():
    rng = random.Random(1)
    texts = random_texts(rng, 5120, T)
    pieces = [bytes([byte]) for byte in range(256)]
    for text in texts[:600]:  # pieces cut anywhere: several words, half characters, blanks
        for _ in range(6):
            at = rng.randrange(len(text) + 1)
            pieces.append(text[at : at + rng.randrange(2, 20)])
    pieces = [p for p in dict.fromkeys(pieces) if p]
    rng.shuffle(pieces)
    lengths_V = np.array([len(p) for p in pieces], np.int32)
    bytes_VN = np.zeros((len(pieces), lengths_V.max()), np.uint8)
    for row, piece in enumerate(pieces):
        bytes_VN[row, : len(piece)] = list(piece)
    tables = build_tables(bytes_VN, lengths_V, VADER)
    numbers = {piece: row for row, piece in enumerate(pieces)}
    rows = [python_split(rng, text, numbers) for text in texts]
    assert np.mean([len(row) < len(text) for row, text in zip(rows, texts, strict=True)]) > 0.8
    np.testing.assert_allclose(scores_of(rows, tables), expected_of(texts), atol=1e-6)

    ids = np.random.default_rng(1).integers(0, len(pieces), (2048, 48))
    expected = expected_of([b"".join(pieces[i] for i in row) for row in ids])
    np.testing.assert_allclose(scores_of([list(r) for r in ids], tables), expected, atol=1e-6)


@pytest.mark.skipif(not (SMOLLM2 / "tokenizer.json").is_file(), reason="SmolLM2 is not cached")
def test_equals_python_with_smollm2():
    tokenizer = load_tokenizer(SMOLLM2)
    tables = REWARD.make_tables(tokenizer, 49152)
    bytes_VN, lengths_V = token_bytes(tokenizer, 49152)
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 49152, (3072, 24))
    joined = [b"".join(bytes_VN[i, : lengths_V[i]].tobytes() for i in row) for row in ids]
    scores = scores_of([list(row) for row in ids], tables, pad=tokenizer.eos_token_id)
    np.testing.assert_allclose(scores, expected_of(joined), atol=1e-6)

    texts = [t.decode(errors="ignore").encode() for t in random_texts(random.Random(2), 2048, T)]
    rows = [tokenizer.encode(t.decode(), add_special_tokens=False) for t in texts]
    np.testing.assert_allclose(scores_of(rows, tables), expected_of(texts), atol=1e-6)


def test_padding_does_not_count(byte_tables):
    texts = random_texts(random.Random(3), SIZE, 60)
    rows = [list(text) for text in texts]
    expected = expected_of(texts)
    np.testing.assert_allclose(scores_of(rows, byte_tables), expected, atol=1e-6)
    # A stop token at the end (length 0 in bytes), equal to the padding and under the mask.
    stopped = scores_of([[*row, EOS] for row in rows], byte_tables)
    np.testing.assert_allclose(stopped, expected, atol=1e-6)
    junk = np.random.default_rng(3).integers(0, 300, (SIZE, T))
    np.testing.assert_allclose(scores_of(rows, byte_tables, junk=junk), expected, atol=1e-6)
    np.testing.assert_allclose(scores_of(rows, byte_tables, 61), expected, atol=1e-6)
    # A padding token that holds a whole word.
    bytes_VN = np.frombuffer(b"bad   " + b" good ", np.uint8).reshape(2, 6)
    tables = build_tables(bytes_VN, np.array([3, 6]), VADER)
    expected = expected_of([b"bad", b"bad good bad"])
    np.testing.assert_allclose(scores_of([[0], [0, 1, 0]], tables, pad=1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("great", ["great"]),
        ("great movie", ["great"]),
        ("movie, GREAT", ["great"]),
        (" great ", ["great"]),
        ("great great", ["great", "great"]),
        ("great-good'bad", ["great", "good", "bad"]),
        ("greatgood", []),
        ("greaté", []),
        ("gr8", ["gr8"]),
        ("İgood", []),
        ("good" * 9 + " good", ["good"]),
    ],
)
def test_words(byte_tables, text, found):
    total = sum(VADER[word.encode()] for word in found)
    scored = scores_of([list(text.encode())], byte_tables)[0]
    assert scored == pytest.approx(total / math.sqrt(total**2 + 15), abs=1e-6)


def test_own_words_alpha_and_masked_gaps():
    words = {"Good": 1.5, "bad": -0.25, "schön": 2.0, "r2d2": 1e3}
    reward = lexicon(words, name="mine", alpha=2.0)
    assert reward.name == "mine"
    tables = reward.make_tables(byte_tokenizer(), 259)
    texts = ["good bad SCHöN", "schÖn good", "R2D2!", "go", "x"]
    lowered = {word.lower().encode(): value for word, value in words.items()}
    expected = [python_score(text.encode(), lowered, alpha=2.0) for text in texts]
    rollout = make_rollout([list(text.encode()) for text in texts], 20)
    np.testing.assert_allclose(jax.jit(reward.fn)(rollout, {}, tables), expected, atol=1e-6)
    # Masked tokens inside the row are skipped, not boundaries.
    gap = make_rollout([list(b"go, ,od")], 7)._replace(mask_BT=np.float32([[1, 1, 0, 0, 0, 1, 1]]))
    np.testing.assert_allclose(
        jax.jit(reward.fn)(gap, {}, tables), [python_score(b"good", lowered, 2.0)], atol=1e-6
    )


def test_vmap_sharding_and_rank_promotion(byte_tables):
    texts = random_texts(random.Random(4), 64, T)
    rollout = make_rollout([list(text) for text in texts], T)
    expected = expected_of(texts)
    devices = jax.devices()
    rows = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    split = jax.tree.map(lambda x: jax.device_put(x, rows), rollout)
    with jax.numpy_rank_promotion("raise"):
        sharded_B = jax.jit(REWARD.fn)(split, {}, byte_tables)
    assert sharded_B.dtype == jnp.float32 and sharded_B.shape == (64,)
    np.testing.assert_allclose(sharded_B, expected, atol=1e-6)
    stacked = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 16, *x.shape[1:]), rollout)
    nested = jax.jit(jax.vmap(REWARD.fn, in_axes=(0, None, None)))(stacked, {}, byte_tables)
    np.testing.assert_allclose(nested.reshape(-1), expected, atol=1e-6)


def test_tables_are_arguments_of_the_step(byte_tables):
    rollout = make_rollout([list(b"great")] * 2, 8)
    text = jax.jit(REWARD.fn).lower(rollout, {}, byte_tables).as_text()
    assert len(text) < 60_000  # 7000 words as constants would be far more


def family(multipliers, mix=None) -> HashFamily:
    plain = np.tile(np.arange(1, 257, dtype=np.uint32), (2, 1))
    return HashFamily(np.array(multipliers, np.uint32), plain if mix is None else mix)


def test_colliding_hashes_are_refused_and_the_next_tried():
    letters = np.frombuffer(b"ab", np.uint8).reshape(2, 1)
    lengths = np.array([1, 1], np.int32)
    anagrams = {b"ab": 1.0, b"ba": -1.0}
    # Multiplier 1 sums the bytes, so anagrams collide; a zero mix hashes all to "no word".
    bad = family((1, 3))
    silent = family((3, 5), np.zeros((2, 256), np.uint32))
    for wrong in (bad, silent):
        with pytest.raises(ConfigError, match="collide"):
            build_tables(letters, lengths, anagrams, [wrong])
    with pytest.raises(ConfigError, match="collide"):
        build_tables(letters, lengths, {b"ab": 1.0}, [silent])
    tables = build_tables(letters, lengths, anagrams, [bad, silent, family((3, 1))])
    rollout = make_rollout([[0, 1], [1, 0], [0, 0], [1]], 2, pad=0)
    np.testing.assert_allclose(score(rollout, {}, tables), [0.25, -0.25, 0, 0], atol=1e-6)


def test_both_hashes_must_match():
    # Under multiplier 1 the first hash of "c" and "ab" could be equal; the second tells them apart.
    mix = np.tile(np.arange(256, dtype=np.uint32), (2, 1))
    mix[:, ord("c")] = mix[0, ord("a")] + mix[0, ord("b")]
    mix[1, ord("c")] += 7
    pieces = np.frombuffer(b"abc", np.uint8).reshape(3, 1)
    tables = build_tables(pieces, np.ones(3, np.int32), {b"ab": 1.0}, [family((1, 1), mix)])
    rollout = make_rollout([[0, 1], [2]], 2, pad=0)
    np.testing.assert_allclose(score(rollout, {}, tables), [0.25, 0.0], atol=1e-6)


def test_vader_words():
    assert len(VADER) > 7000
    assert VADER[b"great"] == 3.1 and VADER[b"horrible"] == -2.5
    assert all(re.fullmatch(b"[a-z0-9]+", word) for word in VADER)


def test_missing_vader_package(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install vaderSentiment"):
        sentiment()
