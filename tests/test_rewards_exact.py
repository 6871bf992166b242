"""Rewards for the text of a column against the same comparison in Python, for any tokenisation."""

import json
import os.path
import random

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax import data
from ppo_jax.columns import text_column
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.evaluate import make_evaluation
from ppo_jax.prepare import open_run_of, prepare, read_dataset
from ppo_jax.programs import make_stepper
from ppo_jax.rewards.base import DeviceReward, parse_rewards, text_columns
from ppo_jax.rewards.byte_stream import build_tables
from ppo_jax.rewards.ending import ends_with
from ppo_jax.rewards.exact import exact_match, prefix_match
from ppo_jax.samples import shown
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.types import Texts
from reward_rows import make_rollout
from test_rewards_format import packed, split, vocabulary
from tiny_runs import CONFIG

ROWS, T, C, M = 1024, 40, 3, 24  # one compiled shape
CHARACTERS = "0123456789ab é日😀\n\t-"
STRIPS = True, False
exact = {strip: jax.jit(exact_match(strip=strip, must_end=False).fn) for strip in STRIPS}
exact_ended = jax.jit(exact_match().fn)
prefix = {strip: jax.jit(prefix_match(strip=strip).fn) for strip in STRIPS}


def random_text(rng: random.Random) -> bytes:
    """1 to M bytes of whole characters."""
    text = "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 8)))
    while len(text.encode()) > M:
        text = text[:-1]
    return text.encode()


def random_response(rng: random.Random, text: bytes) -> bytes:
    """Mostly near the text: the same, cut, longer, in blanks, one byte off; broken characters."""
    kind, at = rng.randrange(9), rng.randrange(len(text) + 1)
    if kind < 3:
        return text
    if kind == 3:
        return text[:at]
    if kind == 4:
        return text + random_text(rng)
    if kind == 5:
        blanks = [bytes(rng.choices(b" \n\t\x0c", k=rng.randrange(3))) for _ in "ab"]
        return blanks[0] + text + blanks[1]
    if kind == 6:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind == 7:
        return random_text(rng)
    return rng.choice([b"", b" ", b"\n \t"])


def python_scores(response: bytes, texts: list[bytes], strip: bool) -> tuple[float, float]:
    """(exact match, prefix match)"""
    if strip:
        response, texts = response.strip(), [text.strip() for text in texts]
    shares = []
    for text in texts:
        longer = max(len(response), len(text))
        agree = len(os.path.commonprefix([response, text]))
        shares.append(agree / longer if longer else 1.0)
    return float(response in texts), max(shares)


@pytest.fixture(scope="module")
def pairs():
    """(tables, batches of (rows of ids, the bytes they spell, texts of each row))"""
    rng, tables, ids, pieces, found = random.Random(0), None, {}, [], []
    for _ in range(12):
        texts = [[random_text(rng) for _ in range(rng.randrange(1, C + 1))] for _ in range(ROWS)]
        responses = [random_response(rng, rng.choice(row)) for row in texts]
        if not pieces:
            pieces = vocabulary(responses[: ROWS // 2], rng)
            tables = build_tables(*packed(pieces))
            ids = {piece: number for number, piece in enumerate(pieces) if piece}
        rows = [split(response, ids, rng)[: T - 1] for response in responses]
        spelt = [b"".join(pieces[number] for number in row) for row in rows]
        found.append((rows, spelt, texts))
    return tables, found


def texts_of(rows: list[list[bytes]]) -> Texts:
    """As `take_texts` makes them, of one width for all batches."""
    bytes_BCM = np.zeros((len(rows), C, M), np.uint8)
    sizes_BC = np.zeros((len(rows), C), np.int32)
    for i, row in enumerate(rows):
        for c, text in enumerate(row):
            bytes_BCM[i, c, : len(text)] = list(text)
            sizes_BC[i, c] = len(text)
    return Texts(bytes_BCM.astype(np.int32), sizes_BC, bytes_BCM, sizes_BC)


def test_equals_python_for_any_tokenisation(pairs):
    tables, batches = pairs
    seen = []
    for rows, spelt, texts in batches:
        rollout, columns = make_rollout(rows, T), {"answer": texts_of(texts)}
        for strip in STRIPS:
            wanted = np.array(
                [python_scores(*pair, strip) for pair in zip(spelt, texts, strict=True)]
            )
            exact_B = exact[strip](rollout, columns, tables)
            prefix_B = prefix[strip](rollout, columns, tables)
            assert exact_B.dtype == prefix_B.dtype == np.float32 and exact_B.shape == (ROWS,)
            np.testing.assert_array_equal(exact_B, wanted[:, 0])
            np.testing.assert_allclose(prefix_B, wanted[:, 1], rtol=1e-6)
            seen.append(wanted)
    assert sum(len(rows) for rows, _, _ in batches) > 10_000
    stripped, plain = np.concatenate(seen[::2]), np.concatenate(seen[1::2])
    assert 0.3 < plain[:, 0].mean() < stripped[:, 0].mean() < 0.7  # both kinds, and strip matters
    assert 0.1 < np.mean((stripped[:, 1] > 0) & (stripped[:, 1] < 1)) < 0.6


def test_cut_off_responses_padding_and_junk(pairs):
    tables, ((rows, spelt, texts), *_) = pairs
    columns = {"answer": texts_of(texts)}
    ended = [number % 3 > 0 for number in range(ROWS)]
    wanted = [
        python_scores(*row[:2], strip=True)[0] * row[2]
        for row in zip(spelt, texts, ended, strict=True)
    ]
    plain = make_rollout(rows, T, ended=ended)
    np.testing.assert_array_equal(exact_ended(plain, columns, tables), wanted)
    junk = np.random.default_rng(0).integers(0, 300, (ROWS, T))
    other = make_rollout(rows, T, ended=ended, junk=junk)
    np.testing.assert_array_equal(exact_ended(other, columns, tables), wanted)
    prefix_B = prefix[True](plain, columns, tables)
    np.testing.assert_array_equal(prefix[True](other, columns, tables), prefix_B)
    by_row = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, by_row), (other, columns))
    np.testing.assert_array_equal(prefix[True](*sharded, tables), prefix_B)


def test_the_stop_token_is_no_part_of_the_answer_but_of_the_ending():
    """A stop token that has bytes, as a full stop or a line's end may be one."""
    tables = build_tables(*packed([bytes([byte]) for byte in range(256)] + [b"", b"."]))
    rollout = make_rollout([list(b"12"), list(b"12."), list(b"12 "), []], 6, ended=[1, 0, 0, 1])
    columns = {"answer": texts_of([[b"12"], [b"12."], [b"12"], [b"."]])}
    np.testing.assert_array_equal(exact[True](rollout, columns, tables), [1, 1, 1, 0])
    np.testing.assert_array_equal(exact[False](rollout, columns, tables), [1, 1, 0, 0])
    np.testing.assert_array_equal(exact_ended(rollout, columns, tables), [1, 0, 0, 0])
    np.testing.assert_array_equal(ends_with(".").fn(rollout, {}, tables), [1, 1, 0, 1])
    np.testing.assert_array_equal(ends_with("2.").fn(rollout, {}, tables), [1, 1, 0, 0])
    np.testing.assert_array_equal(ends_with("2", strip=True).fn(rollout, {}, tables), [0, 0, 1, 0])


def test_endings_equal_python(pairs):
    tables, ((rows, spelt, _), *_) = pairs
    rollout = make_rollout(rows, T, ended=[False] * ROWS)
    for text, strip in (("0", False), ("é", True), ("日b", False)):
        trimmed = [response.rstrip() if strip else response for response in spelt]
        wanted = [response.endswith(text.encode()) for response in trimmed]
        scores_B = jax.jit(ends_with(text, strip=strip).fn)(rollout, {}, tables)
        assert sum(wanted) > 0 and scores_B.dtype == np.float32
        np.testing.assert_array_equal(scores_B, wanted)


LETTERS = [chr(letter) for letter in range(32, 127)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run, stepper, state, frozen) with a column of texts, on two devices, in microbatches."""
    path = tmp_path_factory.mktemp("data") / "answers.jsonl"
    rows = [{"prompt": "abc"[n % 3 :], "answer": LETTERS[n % 7 :]} for n in range(16)]
    path.write_text("\n".join(map(json.dumps, rows)))
    changes = {"data.path": str(path), "ppo.microbatches": 2, "run.show_prompts": 3}
    config = replace(CONFIG, **changes)
    reward = [(0.25, exact_match(must_end=False)), prefix_match()]
    opened = open_run_of(config, reward, read_dataset)
    return prepare(opened)


def test_fused_with_microbatches_and_devices(run):
    run, state, frozen = run
    stepper = make_stepper(run)
    prompts = data.make_batch(run.dataset, run.config, 0, pad_id=run.pad_id, width=run.width)
    before = shown(run, make_evaluation(run.setup), state, frozen)
    _, done = stepper.dispatch(state, frozen, 0, prompts)
    assert set(stepper.compiled) == {"train_step"}
    assert "callback" not in stepper.compiled["train_step"].as_text()
    ids_BT, lengths_B, ended_B, scores_B = jax.device_get(
        (*done.rollout[2:3], *done.rollout[4:6], done.scores_B)
    )
    wanted = []
    for row, ids_T, length, ended in zip(
        prompts.prompt_index_B, ids_BT, lengths_B, ended_B, strict=True
    ):
        spelt = bytes(i for i in ids_T[: length - ended].tolist() if i < 256)
        texts = [text.encode() for text in run.dataset.columns["answer"][row]]
        one, share = python_scores(spelt, texts, strip=True)
        wanted.append(0.25 * one + share)
    assert len(set(wanted)) > 1
    np.testing.assert_allclose(scores_B, wanted, rtol=1e-6)
    assert len(before) == 3 and all(0 <= row["score"] <= 1.25 for row in before)


def texts_read(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", **row}) + "\n" for row in rows))
    options = replace(CONFIG, **{"data.path": str(path)}, **options).data
    parts = parse_rewards([exact_match(), prefix_match(), exact_match("also")])
    return data.load_dataset(options, byte_tokenizer(), vocab_size=259, texts=text_columns(parts))


def test_columns_of_texts(tmp_path):
    rows = [{"answer": "é1", "also": ["x", "yz"]}, {"answer": ["12", "3"], "also": "w"}]
    dataset = texts_read(tmp_path, rows)
    assert list(dataset.texts) == ["answer", "also"] and dataset.numeric == {}
    prompts = data.prompt_rows(dataset, np.array([1, 0, 1]), pad_id=258, width=1)
    answer = prompts.columns["answer"]
    assert answer.ids_BCN.tolist() == [
        [[49, 50, 0], [51, 0, 0]],
        [[195, 169, 49], [0, 0, 0]],
        [[49, 50, 0], [51, 0, 0]],
    ]
    assert answer.lengths_BC.tolist() == answer.sizes_BC.tolist() == [[2, 1], [3, 0], [2, 1]]
    np.testing.assert_array_equal(answer.bytes_BCM, answer.ids_BCN)
    assert [x.dtype for x in answer] == [np.int32, np.int32, np.uint8, np.int32]


GOOD = {"answer": "1", "also": "2"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"answer": "1"}, r"no column 'also', which a reward reads \('answer'\)"),
        ({**GOOD, "also": 12}, "'also' holds a number; a reward reads it: expected a string"),
        ({**GOOD, "also": None}, "'also' holds null; .* or a list of strings"),
        ({**GOOD, "answer": []}, "'answer' holds an empty list"),
        ({**GOOD, "answer": ["1", ""]}, "'answer' holds an empty string"),
        ({**GOOD, "answer": ["1", ["2"]]}, "'answer' holds a list"),
    ],
)
def test_unusable_texts_are_named_with_their_line(tmp_path, row, says):
    with pytest.raises(DataError, match=rf"rows.jsonl:1: {says}") as error:
        texts_read(tmp_path, [row])
    assert "\n" not in str(error.value)


def test_unusable_rows_may_be_left_out(tmp_path, capsys):
    dataset = texts_read(tmp_path, [GOOD, {**GOOD, "also": 3}, GOOD], **{"data.bad_rows": "skip"})
    assert dataset.lines == [1, 3] and dataset.skipped == 1
    assert len(dataset.texts["also"].ids) == 2 and "holds a number" in capsys.readouterr().err


def test_a_text_of_another_models_tokens(tmp_path):
    with pytest.raises(DataError, match="a.jsonl:7: token id 98 is outside .* another model"):
        text_column(["a", "b"], byte_tokenizer(), 98, ["a.jsonl:3", "a.jsonl:7"])


def test_unusable_arguments_name_the_reward():
    for make in (exact_match, prefix_match):
        with pytest.raises(ConfigError, match="^reward mine: column must name .*, got ''$"):
            make("", name="mine")
    with pytest.raises(ConfigError, match="^reward mine: the text must be a string"):
        ends_with("", name="mine")
    with pytest.raises(ConfigError, match="^reward ends_with: '. ' begins or ends in a blank"):
        ends_with(". ", strip=True)
    (part,) = parse_rewards((2.0, exact_match("truth", name="mine")))
    assert isinstance(part.device, DeviceReward) and text_columns([part]) == ("truth",)
