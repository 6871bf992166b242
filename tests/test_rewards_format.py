"""The format reward against Python's `re`, for any tokenisation."""

import random
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax.errors import ConfigError
from ppo_jax.rewards import format as module
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.format import build_tables, matches
from ppo_jax.rewards.regex_dfa import compile_dfa
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer, token_bytes
from reward_rows import STOP, make_rollout
from test_regex_dfa import random_texts, re_fullmatch

SMOLLM2 = Path("~/.cache/ppo_jax/models/smollm2-135m").expanduser()
ROWS, T = 512, 64  # one compiled shape, with the tables filled up to one shape too
STATES, KINDS = 64, 4096
PATTERNS = [
    r"<think>.*</think>\s*<answer>-?\d+</answer>",
    r"[^<]*<b>[^<]+</b>[^<]*",
    r"\s*\{\"a\": (\d+|null|\"[^\"\\]*\")\}\s*",
    r"(yes|no|maybe so)[.!]?",
    r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?",
    r"([A-Z][a-z]*\s?)+",
    r".*日本.*",
    r"[à-ü]+|[😀-😎]{2,}",
    r"(é.){2,3}?\W*",
    r"[^\x00-\x7f]*",
    r"",
    rb"[^\x80-\xff]*",
    rb"(\xe6.)+|.\xa5.?",
    rb"(?:.{3})*",
]
score = jax.jit(matches("x", must_end=False).fn)
score_ended = jax.jit(matches("x").fn)
score_tokens = jax.jit(matches("x", per_token=True).fn)


def vocabulary(texts: list[bytes], rng: random.Random) -> list[bytes]:
    """Single bytes, three ids without bytes as the byte tokenizer has, pieces cut anywhere."""
    pieces = [bytes([byte]) for byte in range(256)] + [b""] * 3
    for text in texts:
        at = rng.randrange(len(text) + 1)
        pieces.append(text[at : at + rng.randrange(2, 9)])
    return pieces


def split(text: bytes, ids: dict[bytes, int], rng: random.Random) -> list[int]:
    """A random tokenisation, with ids in between that have no bytes."""
    found, at = [], 0
    while at < len(text):
        if rng.random() < 0.05:
            found.append(258)
        sizes = [size for size in range(1, 9) if text[at : at + size] in ids]
        size = rng.choice(sizes)
        found.append(ids[text[at : at + size]])
        at += size
    return found


def packed(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths_V = np.array([len(piece) for piece in pieces], np.int32)
    joined = b"".join(piece.ljust(lengths_V.max(), b"\0") for piece in pieces)
    return np.frombuffer(joined, np.uint8).reshape(len(pieces), -1), lengths_V


def filled(tables):
    K, S = tables.next_KS.shape
    assert K <= KINDS and S <= STATES
    return tables._replace(
        next_KS=np.pad(tables.next_KS, ((0, KINDS - K), (0, STATES - S))),
        accepts_S=np.pad(tables.accepts_S, (0, STATES - S)),
        viable_S=np.pad(tables.viable_S, (0, STATES - S)),
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=ascii)
def test_equals_python_for_any_tokenisation(pattern):
    rng = random.Random(repr(pattern))
    dfa = compile_dfa(pattern, "reward matches")
    texts = random_texts(dfa, rng, 2 * ROWS, 48)
    # Ids of two bytes and more are chosen often enough to cut characters.
    pieces = vocabulary(texts[: ROWS // 2], rng)
    ids = {piece: number for number, piece in enumerate(pieces) if piece}
    rows = [split(text, ids, rng)[: T - 1] for text in texts]
    texts = [b"".join(pieces[number] for number in row) for row in rows]
    tables = filled(build_tables(*packed(pieces), dfa))
    wanted = np.array([re_fullmatch(pattern, text) for text in texts], np.float32)
    assert 0.05 < wanted.mean() < 0.95
    ended = [rng.random() < 0.5 for _ in rows]
    for start in (0, ROWS):
        part = slice(start, start + ROWS)
        rollout = make_rollout(rows[part], T, ended=ended[part])
        scores_B = score(rollout, {}, tables)
        assert scores_B.dtype == np.float32 and scores_B.shape == (ROWS,)
        np.testing.assert_array_equal(scores_B, wanted[part])
        both = wanted[part] * np.array(ended[part])
        np.testing.assert_array_equal(score_ended(rollout, {}, tables), both)
        tokens_BT = score_tokens(rollout, {}, tables)
        assert tokens_BT.dtype == np.float32 and np.all(np.isin(tokens_BT, [0, -1]))
        has_tokens = rollout.lengths_B > 0
        np.testing.assert_array_equal(tokens_BT.sum(axis=1)[has_tokens], (both - 1)[has_tokens])


@pytest.mark.skipif(not (SMOLLM2 / "tokenizer.json").is_file(), reason="SmolLM2 is not cached")
def test_equals_python_with_smollm2():
    tokenizer, rng = load_tokenizer(SMOLLM2), random.Random(0)
    bytes_VN, lengths_V = token_bytes(tokenizer, 49152)
    for pattern in (PATTERNS[0], PATTERNS[6]):
        found = random_texts(compile_dfa(pattern, "reward matches"), rng, ROWS, 48)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        rows = [encode(text.decode(errors="ignore")) for text in found]
        # Its vocabulary lacks some rare bytes, which are then no part of the response.
        texts = [b"".join(bytes_VN[i, : lengths_V[i]].tobytes() for i in row) for row in rows]
        wanted = [re_fullmatch(pattern, text) for text in texts]
        assert 0.05 < np.mean(wanted) < 0.95
        rollout = make_rollout(rows, T, ended=[False] * ROWS, pad=tokenizer.eos_token_id)
        tables = matches(pattern).make_tables(tokenizer, 49152)
        np.testing.assert_array_equal(score(rollout, {}, filled(tables)), wanted)


@pytest.fixture(scope="module")
def words():
    """A reward with three words, its tables, and rows of single bytes around these words."""
    reward = matches("yes|no|maybe so", per_token=True)
    rng, found = random.Random(1), []
    for _ in range(ROWS):
        word = rng.choice([b"yes", b"no", b"maybe so"])
        word = word[: rng.randrange(len(word) + 1)] if rng.random() < 0.4 else word
        at = rng.randrange(len(word) + 1)
        found.append(list(word[:at] + rng.choice([b"", b"", b"x", b" "]) + word[at:]))
    return reward, reward.make_tables(byte_tokenizer(), 300), found


def test_the_blame_of_each_token(words):
    _, tables, rows = words
    ended = [number % 3 > 0 for number in range(ROWS)]
    tokens_BT = np.asarray(score_tokens(make_rollout(rows, 12, ended=ended), {}, filled(tables)))
    known = [b"yes", b"no", b"maybe so"]
    for row, stop, tokens_T in zip(rows, ended, tokens_BT, strict=True):
        begun = [any(w.startswith(bytes(row[: n + 1])) for w in known) for n in range(len(row))]
        wanted_T = np.zeros(12)
        if False in begun:
            wanted_T[begun.index(False)] = -1
        elif (bytes(row) not in known or not stop) and len(row) + stop > 0:
            wanted_T[len(row) + stop - 1] = -1  # the stop token, or the last one there was room for
        np.testing.assert_array_equal(tokens_T, wanted_T)


def test_padding_does_not_count(words):
    _, tables, rows = words
    plain = make_rollout(rows, 12)
    junk = np.random.default_rng(0).integers(0, 300, (ROWS, 20))
    wider = make_rollout(rows, 20, junk=junk)
    scores_B = score_ended(plain, {}, tables)
    assert 0.2 < scores_B.mean() < 0.8
    np.testing.assert_array_equal(score_ended(wider, {}, tables), scores_B)
    tokens_BT = score_tokens(wider, {}, tables)
    np.testing.assert_array_equal(tokens_BT[:, :12], score_tokens(plain, {}, tables))
    assert not np.any(tokens_BT[:, 12:])


def test_empty_responses_and_bytes_of_the_stop_token():
    rollout = make_rollout([[], [], [ord("a")]], 3, ended=[True, False, True])
    for pattern, wanted in (("a?", [1, 0, 1]), ("a", [0, 0, 1])):
        tables = matches(pattern).make_tables(byte_tokenizer(), 300)
        np.testing.assert_array_equal(score_ended(rollout, {}, tables), wanted)
        tokens_BT = score_tokens(rollout, {}, tables)
        np.testing.assert_array_equal(tokens_BT, [[wanted[0] - 1, 0, 0], [0] * 3, [0] * 3])
    # A stop token that has bytes, as a line's end may be one, is no part of the response.
    pieces = [bytes([byte]) for byte in range(256)] + [b"", b"\n"]
    tables = build_tables(*packed(pieces), compile_dfa("a?", "reward matches"))
    np.testing.assert_array_equal(score_ended(rollout, {}, tables), [1, 0, 1])
    np.testing.assert_array_equal(score(make_rollout([[STOP, 97]], 3), {}, tables), [0])


def test_vmap_sharding_and_tables_as_arguments(words):
    reward, tables, rows = words
    rollout = make_rollout(rows, 12)
    wanted_BT = score_tokens(rollout, {}, tables)
    by_row = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, by_row), rollout)
    np.testing.assert_array_equal(score_tokens(sharded, {}, tables), wanted_BT)
    stacked = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), rollout)
    nested = jax.jit(jax.vmap(reward.fn, in_axes=(0, None, None)))(stacked, {}, tables)
    np.testing.assert_array_equal(nested.reshape(wanted_BT.shape), wanted_BT)
    assert len(score_tokens.lower(rollout, {}, filled(tables)).as_text()) < 30_000


def test_a_table_that_is_too_large(monkeypatch):
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 40)
    reward = matches("[a-f]{5}", name="mine")
    with pytest.raises(ConfigError, match="^reward mine: the pattern has 7 states .*simpler") as e:
        reward.make_tables(byte_tokenizer(), 300)
    assert "\n" not in str(e.value)


def test_unusable_patterns_name_the_reward():
    with pytest.raises(ConfigError, match="^reward mine: the pattern must be str or bytes, got 3$"):
        matches(3, name="mine")
    with pytest.raises(ConfigError, match=r"^reward mine: the pattern '\(a' cannot be used: "):
        matches("(a", name="mine")
    (part,) = parse_rewards((2.0, matches(".*", name="mine")))
    assert (part.name, part.weight, part.host) == ("mine", 2.0, None)
