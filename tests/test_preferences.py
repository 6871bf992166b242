"""Pairs and scored responses: what is read, what is refused, how a batch of them stands."""

import json

import numpy as np
import pytest

from ppo_jax.config import Config, DataOptions, replace
from ppo_jax.data import first_rows
from ppo_jax.errors import DataError
from ppo_jax.preferences import (
    load_preferences,
    rated_batch,
    rated_rows,
    response_width,
    responses_each,
)
from ppo_jax.tokenizer import byte_tokenizer

EOS, PAD = 257, 258
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
SCORED = {"prompt": "p", "response": "fine", "score": 0.5}


def load(folder, rows, *, room=9, tokenizer=None, **options):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    options = DataOptions(path=str(path), **options)
    return load_preferences(options, tokenizer, vocab_size=259, eos=EOS, room=room)


def test_both_responses_end_with_the_eos_and_stand_side_by_side(tmp_path):
    rows = [PAIR | {"margin": 1}, {"prompt": "qq", "chosen": "x", "rejected": "yz", "margin": 0.5}]
    dataset = load(tmp_path, rows)
    assert responses_each(dataset) == 2 and response_width(dataset) == 5
    rated = rated_rows(dataset, np.array([1, 0, -1]), pad_id=PAD, widths=(3, 6))
    ids_NET, lengths_NE = rated.rollout.response_ids_BT, rated.rollout.lengths_B
    given = [[list(ids[:n]) for ids, n in zip(*pair, strict=True)] for pair in
             zip(ids_NET.tolist(), lengths_NE.tolist(), strict=True)]  # fmt: skip
    assert given[0] == [[*b"x", EOS], [*b"yz", EOS]]
    assert given[1] == [[*b"good", EOS], [*b"bad", EOS]]
    prompts = rated.rollout.prompt_ids_BP
    assert prompts.shape == (3, 2, 3)
    np.testing.assert_array_equal(prompts[:2, 0], prompts[:2, 1])
    assert prompts[0, 0].tolist() == [PAD, *b"qq"]
    assert rated.targets_N[:2].tolist() == [0.5, 1.0] and rated.targets_N.dtype == np.float32
    assert rated.counts_N.tolist() == [1.0, 1.0, 0.0]


def test_scored_responses_stand_alone(tmp_path):
    dataset = load(tmp_path, [SCORED, SCORED | {"score": -2, "response": "b"}])
    assert responses_each(dataset) == 1
    rated = rated_rows(dataset, np.array([1]), pad_id=PAD, widths=(1, 5))
    assert rated.rollout.response_ids_BT.shape == (1, 1, 5)
    assert rated.targets_N.tolist() == [-2.0] and rated.rollout.lengths_B.tolist() == [[2]]


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    rows = [PAIR | {"chosen": "abcdefg"[: n + 1], "rejected": "z"} for n in range(7)]
    dataset = load(tmp_path, rows)
    config = replace(Config(), **{"rollout.batch_size": 6, "run.seed": 4})
    batch = lambda step: rated_batch(dataset, config, step, pad_id=PAD, widths=(1, 8)).rollout
    shapes = {batch(step).response_ids_BT.shape for step in range(7)}
    assert shapes == {(3, 2, 8)}
    np.testing.assert_array_equal(batch(5).response_ids_BT, batch(5).response_ids_BT)
    # Seven batches of three are three epochs: every pair three times.
    lengths = np.concatenate([batch(step).lengths_B[:, 0] for step in range(7)])
    assert sorted(lengths.tolist()) == sorted([*range(2, 9)] * 3)


def test_messages_and_a_text_that_has_its_eos(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    say = lambda role, text: [{"role": role, "content": text}]
    row = {
        "prompt": say("user", "hi"),
        "chosen": say("assistant", "ho<|eos|>"),
        "rejected": say("assistant", "no"),
    }
    dataset = load(tmp_path, [row], tokenizer=tokenizer)
    assert bytes(dataset.prompt_ids[0]) == b"[hi]>"
    assert dataset.response_ids == [[*b"ho", EOS]]
    assert dataset.rejected_ids == [[*b"no", EOS]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p", "chosen": "a"}], "expected the columns `chosen` and `rejected`, or"),
        ([PAIR | SCORED], "in one file: expected pairs or scores"),
        ([PAIR, PAIR | {"chosen": ""}], ":2: chosen is empty"),
        ([PAIR | {"rejected": 3}], ":1: rejected is a number; expected a string, or a list of one"),
        ([PAIR | {"chosen": [{"role": "user", "content": "x"}]}], ":1: chosen is a list"),
        ([PAIR | {"rejected": "good"}], ":1: chosen and rejected are the same"),
        ([PAIR | {"margin": -1}], ":1: margin -1 is below 0"),
        ([PAIR | {"margin": "1"}], ":1: margin is a string; expected a number"),
        ([SCORED | {"score": True}], ":1: score is a boolean; expected a number"),
        ([SCORED | {"score": 1e39}], r":1: score '1e\+39' is beyond the range of float32"),
        ([SCORED, SCORED | {"score": -(10**400)}], r":2: score '-100+'\.\.\. is beyond the range"),
        ([PAIR | {"margin": 10**400}], r":1: margin '100+'\.\.\. is beyond the range of float32"),
        ([SCORED | {"score": None}], ":1: score is null; expected a number"),
        ([PAIR, PAIR | {"chosen": "0123456789"}], ":2: a response has 11 tokens with its EOS, "
         "rollout.max_new_tokens is 9; raise it"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_line(rows, said, tmp_path):
    with pytest.raises(DataError, match=said):
        load(tmp_path, rows)


def test_a_number_that_no_float_holds_is_left_out_as_other_bad_rows_are(tmp_path, capsys):
    dataset = load(tmp_path, [SCORED | {"score": 10**400}, SCORED], bad_rows="skip")
    assert (dataset.lines, dataset.skipped) == ([2], 1) and dataset.targets_N.tolist() == [0.5]
    assert "rows left out: 1, the first" in capsys.readouterr().err


def test_rows_that_are_left_out_or_cut(tmp_path, capsys):
    long = PAIR | {"chosen": "0123456789", "rejected": "0123456789x"}
    rows = [PAIR, PAIR | {"rejected": "good"}, PAIR | {"chosen": "0123456789"}, long]
    with pytest.raises(DataError, match=":3: a response has 11"):  # no fault of the row's own
        load(tmp_path, rows, bad_rows="skip")
    dropped = load(tmp_path, rows, bad_rows="skip", overlong="drop")
    assert (len(dropped.lines), dropped.dropped, dropped.skipped) == (1, 2, 1)
    assert "rows left out: 1, the first" in capsys.readouterr().err
    # What is left of the last pair is the same on both sides: it says nothing.
    cut = load(tmp_path, rows, bad_rows="skip", overlong="truncate")
    assert (cut.lines, cut.truncated, cut.dropped) == ([1, 3], 1, 1)
    assert cut.response_ids == [[*b"good", EOS], [*b"012345678"]]  # cut: it does not end
    assert first_rows(cut, 1).rejected_ids == [[*b"bad", EOS]]
    with pytest.raises(DataError, match=":1: chosen and rejected are the same"):
        load(tmp_path, rows[1:2], bad_rows="skip")
