"""Keys of several words: against the same rule over a list of words, for any tokenisation."""

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
from ppo_jax.rewards.lexicon import lexicon
from ppo_jax.rewards.phrases import MAX_WORDS, phrase_tables, sum_of_longest
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer, token_bytes
from test_lexicon import make_rollout, python_split

SMOLLM2 = Path("~/.cache/ppo_jax/models/smollm2-135m").expanduser()
SIZE, T, EOS = 512, 96, 257
KEYS = {
    "good": 1.9,
    "not": -0.5,
    "not good": -2.25,
    "NOT very good": 0.75,
    "very": 0.25,
    "very good": 3.0,
    "good at all": -1.0,
    "not good at all": -4.0,
    "at all": 0.0,
    "all": 0.125,
    "été Schön": 2.5,
    "schön": 1.0,
    "a b a b a b a b": 8.0,
    "a b": 0.5,
    "b a b": -0.75,
}
LOWERED = {key.encode().lower(): value for key, value in KEYS.items()}
SIZES = tuple(sorted({key.count(b" ") + 1 for key in LOWERED}))
REWARD = lexicon(KEYS)
score = jax.jit(REWARD.fn)


def python_sum(text: bytes, keys=None) -> float:
    """From left to right, the longest key at each word; its words are used up."""
    keys, most = keys or LOWERED, max(k.count(b" ") + 1 for k in keys or LOWERED)
    words = [word.lower() for word in re.findall(rb"[A-Za-z0-9\x80-\xff]+", text)]
    total, at = 0.0, 0
    while at < len(words):
        for size in range(most, 0, -1):
            key = b" ".join(words[at : at + size])
            if at + size <= len(words) and key in keys:
                total += keys[key]
                break
        at += size if key in keys else 1
    return total


def squashed(totals, alpha=15.0):
    totals = np.asarray(totals)
    return totals / np.sqrt(totals**2 + alpha)


def random_texts(rng: random.Random, count: int, limit: int) -> list[bytes]:
    """The keys' words and near misses, glued and separated at random, at most `limit` bytes."""
    words = "not good very at all a b a b été Schön goods nots ve d é 😀 42 İ ß the".split()
    between = [" ", " ", " ", ", ", ". ", "-", "\n\n", " - ", "", "…", "'", "\0", "  ", "!?_"]
    texts = []
    for _ in range(count):
        text = rng.choice(["", " ", "."])
        run = rng.randrange(3)
        for _ in range(rng.randrange(24)):
            some = rng.choice(list(KEYS)) if rng.randrange(4) == 0 else rng.choice(words)
            for word in some.split():
                text += word.upper() if rng.randrange(6) == 0 else word
                text += rng.choice(between if run else between[:3])
        texts.append(text.encode()[:limit])
    return texts


def scores_of(rows, tables, length=T, **options):
    out = []
    for start in range(0, len(rows), SIZE):
        batch = rows[start : start + SIZE]
        batch = batch + [[]] * (SIZE - len(batch))
        out.append(np.asarray(score(make_rollout(batch, length, **options), {}, tables)))
    return np.concatenate(out)[: len(rows)]


@pytest.fixture(scope="module")
def byte_tables():
    return REWARD.make_tables(byte_tokenizer(), 300)


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("good", 1.9),
        ("not good", -2.25),
        ("NOT: Good!", -2.25),
        ("not good at all", -4.0),
        ("not good at", -2.25),
        ("very not good at all good at all", 0.25 - 4.0 - 1.0),
        ("very good at all", 3.0),  # its words are used up: "good at all" begins inside it
        ("notgood not-good", -2.25),
        ("not very good not very", 0.75 - 0.5 + 0.25),
        ("not", -0.5),
        ("at all all", 0.125),  # a valence of 0 counts, and "all" inside it does not
        ("a b a b a b a b", 8.0),
        ("a b a b a b a", 1.5),
        ("b a b a b", -0.75 + 0.5),
        ("été schÖn", 0.0),
        ("ÉTÉ schön", 1.0),
        ("été SCHön", 2.5),
        ("not\n😀\ngood", -0.5 + 1.9),
        ("not ...\n good", -2.25),
        ("", 0.0),
    ],
)
def test_the_longest_key_at_each_word_counts(byte_tables, text, total):
    assert python_sum(text.encode()) == pytest.approx(total)
    found = scores_of([list(text.encode())], byte_tables)[0]
    assert found == pytest.approx(squashed(total), abs=1e-6)


def test_equals_python_on_bytes(byte_tables):
    texts = random_texts(random.Random(0), 6144, T)
    totals = [python_sum(text) for text in texts]
    single = {key: value for key, value in LOWERED.items() if b" " not in key}
    assert np.mean([a != python_sum(t, single) for a, t in zip(totals, texts, strict=True)]) > 0.5
    found = scores_of([list(text) for text in texts], byte_tables)
    np.testing.assert_allclose(found, squashed(totals), atol=1e-6)


def test_equals_python_for_random_tokenisations():
    """Pieces that hold several words, half characters, blanks alone; and rows of random ids."""
    rng = random.Random(1)
    texts = random_texts(rng, 5120, T)
    pieces = [bytes([byte]) for byte in range(256)]
    for text in texts[:500]:
        for _ in range(6):
            at = rng.randrange(len(text) + 1)
            pieces.append(text[at : at + rng.randrange(2, 26)])
    pieces = [piece for piece in dict.fromkeys(pieces) if piece]
    rng.shuffle(pieces)
    lengths_V = np.array([len(piece) for piece in pieces], np.int32)
    bytes_VN = np.zeros((len(pieces), lengths_V.max()), np.uint8)
    for row, piece in enumerate(pieces):
        bytes_VN[row, : len(piece)] = list(piece)
    tables = phrase_tables(bytes_VN, lengths_V, LOWERED)
    assert len(tables.places_K) > 4
    numbers = {piece: row for row, piece in enumerate(pieces)}
    rows = [python_split(rng, text, numbers) for text in texts]
    expected = squashed([python_sum(text) for text in texts])
    np.testing.assert_allclose(scores_of(rows, tables), expected, atol=1e-6)

    ids = np.random.default_rng(1).integers(0, len(pieces), (2048, 48))
    expected = squashed([python_sum(b"".join(pieces[i] for i in row)) for row in ids])
    np.testing.assert_allclose(scores_of([list(r) for r in ids], tables), expected, atol=1e-6)


@pytest.mark.skipif(not (SMOLLM2 / "tokenizer.json").is_file(), reason="SmolLM2 is not cached")
def test_equals_python_with_smollm2():
    tokenizer = load_tokenizer(SMOLLM2)
    tables = REWARD.make_tables(tokenizer, 49152)
    bytes_VN, lengths_V = token_bytes(tokenizer, 49152)
    texts = [t.decode(errors="ignore").encode() for t in random_texts(random.Random(2), 2048, T)]
    rows = [tokenizer.encode(t.decode(), add_special_tokens=False) for t in texts]
    joined = [b"".join(bytes_VN[i, : lengths_V[i]].tobytes() for i in row) for row in rows]
    assert joined == texts
    expected = squashed([python_sum(text) for text in texts])
    found = scores_of(rows, tables, pad=tokenizer.eos_token_id)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_padding_and_masked_gaps_do_not_count(byte_tables):
    texts = random_texts(random.Random(3), SIZE, 60)
    rows, expected = [list(t) for t in texts], squashed([python_sum(t) for t in texts])
    junk = np.random.default_rng(3).integers(0, 300, (SIZE, T))
    for options in ({}, {"junk": junk}, {"pad": 61}):
        np.testing.assert_allclose(scores_of(rows, byte_tables, **options), expected, atol=1e-6)
    ids = [list(b"no, xt go") + [EOS] + list(b"od")]
    real = np.float32([[1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    gap = make_rollout(ids, 12)._replace(mask_BT=real)
    assert jax.jit(REWARD.fn)(gap, {}, byte_tables)[0] == pytest.approx(squashed(-2.25), abs=1e-6)


def test_single_words_score_as_on_their_own_path():
    words = {"good": 1.5, "bad": -2.0, "schön": 0.5}
    reward = lexicon(words)
    texts = [b"good bad, SCH\xc3\xb6N", b"Goods good", b""] + random_texts(random.Random(5), 61, 60)
    rollout = make_rollout([list(text) for text in texts], T)
    alone_B = jax.jit(reward.fn)(rollout, {}, reward.make_tables(byte_tokenizer(), 300))
    bytes_VN, lengths_V = token_bytes(byte_tokenizer(), 300)
    tables = phrase_tables(bytes_VN, lengths_V, {w.encode(): v for w, v in words.items()})
    real_BT = jnp.asarray(rollout.mask_BT) > 0
    sums_B = sum_of_longest(jnp.asarray(rollout.response_ids_BT), real_BT, tables, (1,))
    np.testing.assert_allclose(squashed(sums_B), alone_B, atol=1e-6)


def test_vmap_sharding_and_rank_promotion(byte_tables):
    texts = random_texts(random.Random(4), 64, T)
    rollout = make_rollout([list(text) for text in texts], T)
    expected = squashed([python_sum(text) for text in texts])
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    split = jax.tree.map(lambda x: jax.device_put(x, rows), rollout)
    with jax.numpy_rank_promotion("raise"):
        sharded_B = jax.jit(REWARD.fn)(split, {}, byte_tables)
    assert sharded_B.dtype == jnp.float32 and sharded_B.shape == (64,)
    np.testing.assert_allclose(sharded_B, expected, atol=1e-6)
    stacked = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 16, *x.shape[1:]), rollout)
    nested = jax.jit(jax.vmap(REWARD.fn, in_axes=(0, None, None)))(stacked, {}, byte_tables)
    np.testing.assert_allclose(nested.reshape(-1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"don't": 1.0}, "several have one space between them; nearest valid: 'don t'"),
        ({"not, good": 1.0}, "nearest valid: 'not good'"),
        ({"not  good": 1.0}, "nearest valid: 'not good'"),
        ({" good": 1.0}, "nearest valid: 'good'"),
        ({"two :)": 1.0}, "nearest valid: 'two'"),
        ({"!": 1.0}, "'!' can never match: words are runs of letters and digits"),
        ({"": 1.0}, "'' can never match"),
        ({" ".join("x" * (MAX_WORDS + 1)): 1.0}, f"has {MAX_WORDS + 1} words; expected at most"),
        ({"not good": 1.0, "Not GOOD": 2.0}, "'Not GOOD' is given twice"),
        ({"not good": math.inf}, "the valence of 'not good' is inf"),
    ],
)
def test_unusable_keys(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        lexicon(words)
