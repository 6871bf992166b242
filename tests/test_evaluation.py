"""Held-out prompts during training: in the log, of the state that is saved, and without a trace in
the run itself."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from faults.launch import exact
from ppo_jax import book as books
from ppo_jax import manifest
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.evaluation import DIVERSITY, EVAL, EVAL_FAILED, Answers, make_answers, metrics
from ppo_jax.experiment import Experiment
from ppo_jax.metrics import read_metrics
from ppo_jax.prepare import open_run_of, prepare, read_dataset
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.train import train
from ppo_jax.validate import check_config
from tiny_runs import CONFIG, T, ascii_share, ascii_text, half_and_half, write_prompts

BOOSTS = [1.0 + n % 2 for n in range(10)]
HELD = [{"prompt": "xyz"[n % 3 :], "boost": boost} for n, boost in enumerate(BOOSTS)]
EVAL_CALLS = 2  # of the reward, for so many rows in batches of eight
BEST = "eval/scores"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The prompts of the run and the held-out ones, of which the last is not to be read."""
    folder = tmp_path_factory.mktemp("data")
    held = folder / "held.jsonl"
    held.write_text("\n".join(map(json.dumps, [*HELD, {"prompt": "w", "boost": 100.0}])))
    return write_prompts(folder), str(held)


def configured(files, **changes):
    """Six iterations, evaluated after each second one, saved after each third and where judged."""
    held_out = {
        "data.path": files[0],
        "data.eval_path": files[1],
        "data.eval_rows": len(HELD),
        "run.eval_every": 2,
        "run.keep": 9,
        "run.keep_best": BEST,
    }
    return replace(CONFIG, **{**held_out, **changes})


def launch(folder: Path, files, reward=None, **changes) -> RunFolder:
    config = configured(files, **{"run.dir": str(folder), **changes})
    train(config, Experiment("case", config, reward or half_and_half(), Path("case.py"), ""))
    return run_folder(folder / "case" / "base" / "seed0")


@pytest.fixture(scope="module")
def straight(files, tmp_path_factory):
    """A run, and what its reward was called with."""
    seen = []

    @functools.wraps(ascii_text)
    def watched(prompts, responses, boost):
        seen.append((list(prompts), list(responses), list(boost)))
        return ascii_text(prompts, responses, boost)

    folder = launch(tmp_path_factory.mktemp("straight"), files, half_and_half(watched))
    return folder, seen


def evaluated(folder: RunFolder) -> dict[int, dict[str, float]]:
    """The held-out metrics by the number of iterations before."""
    rows = {row["step"] + 1: row for row in read_metrics(folder.metrics)}
    found = {n: {k: x for k, x in row.items() if k.startswith(EVAL)} for n, row in rows.items()}
    return {n: row for n, row in found.items() if row}


def test_lines_of_evaluated_states_have_the_held_out_metrics(straight):
    folder, seen = straight
    found = evaluated(folder)
    assert list(found) == [2, 4, 6]
    names = "scores ascii_share ascii_text/share ascii_text/zero kl entropy ref_perplexity "
    names = {EVAL + name for name in (names + "ended length_mean unscored win_rate").split()}
    assert all(set(row) - set(DIVERSITY) == names for row in found.values())
    assert all(row["eval/unscored"] == 0 and row["eval/entropy"] > 0 for row in found.values())
    assert all("time/eval" in row for row in read_metrics(folder.metrics)[1::2])
    calls = [call for call in seen if call[0][0] in ("xyz", "yz", "z")]
    assert len(calls) == 4 * EVAL_CALLS  # of the policy that the run begins from, too
    assert [len(prompts) for prompts, _, _ in calls] == [8, 2] * 4  # a filled-up batch counts once
    calls = calls[EVAL_CALLS:]
    for number, row in enumerate(found.values()):
        prompts, texts, boosts = (sum(x, []) for x in zip(*calls[2 * number :][:2], strict=True))
        assert (prompts, boosts) == ([row["prompt"] for row in HELD], BOOSTS)
        longest = max(len(text.split()) for text in texts)
        assert {name for name in row if name in DIVERSITY} == set(DIVERSITY[:longest])
        shares = [
            boost**2 * sum(map(str.isascii, text)) / T
            for boost, text in zip(boosts, texts, strict=True)
        ]
        assert row["eval/ascii_text/share"] == pytest.approx(np.mean(shares), rel=1e-5)
        assert row["eval/scores"] == pytest.approx(np.mean(shares), rel=1e-5)


def test_the_noise_is_the_same_each_time_and_a_policy_is_its_own_reference(files):
    """A state of another step and key, as it is and with one weight moved."""
    config = configured(files, **{"hparams.temperature": 0.8, "rollout.top_k": 40})
    run, state, frozen = prepare(open_run_of(config, ascii_share, read_dataset))
    answer = make_answers(run)
    judge = lambda *at: metrics(answer(*at))
    later = state._replace(step=state.step + 7, key=jax.random.key(9))
    first, again = judge(state, frozen), judge(later, frozen)
    np.testing.assert_equal(first, again)
    assert abs(first["eval/kl"]) <= 1e-6 * T
    head = {**state.params["policy"]}
    head["embed"] = jax.tree.map(lambda x: 1.5 * x, head["embed"])
    moved = judge(state._replace(params={**state.params, "policy": head}), frozen)
    assert moved["eval/kl"] > 0.05 and moved["eval/entropy"] < first["eval/entropy"]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_run_does_not_know_that_it_is_evaluated(straight, files, tmp_path):
    off = {"run.eval_every": None, "run.keep_best": None}
    plain = launch(tmp_path, files, **off)
    of_the_run = lambda row: {k: x for k, x in row.items() if not k.startswith(EVAL)}
    assert list(map(of_the_run, exact(straight[0]))) == exact(plain)
    assert not evaluated(plain)


def test_what_is_kept_as_best_is_what_was_evaluated(straight):
    folder, found = straight[0], evaluated(straight[0])
    good = {
        step: manifest.read_record(folder.checkpoints, step)["facts"]["goodness"]
        for step in manifest.steps(folder.checkpoints)
    }
    assert good == {3: None} | {step: [BEST, row[BEST]] for step, row in found.items()}
    best = max(found, key=lambda step: found[step][BEST])
    assert manifest.best_step(folder.checkpoints) == best


def test_a_reward_that_fails_in_an_evaluation_loses_no_iteration(straight, files, tmp_path):
    """Resumed, the run logs what it would have, but for the evaluation that is said to lack."""
    calls = []

    @functools.wraps(ascii_text)
    def failing(prompts, responses, boost):
        calls.append(len(prompts))
        if len(calls) == 2 + 2 * EVAL_CALLS:
            raise ValueError("no luck")
        return ascii_text(prompts, responses, boost)

    with pytest.raises(RewardError, match="no luck"):
        launch(tmp_path, files, half_and_half(failing))
    folder = run_folder(tmp_path / "case" / "base" / "seed0")
    assert len(read_metrics(folder.metrics)) == manifest.latest_step(folder.checkpoints) == 2
    assert manifest.best_step(folder.checkpoints) is None  # what was not evaluated is no best one
    resumed, whole = exact(launch(tmp_path, files)), exact(straight[0])
    lacking = {k: x for k, x in whole[1].items() if not k.startswith(EVAL)}
    assert resumed[1] == lacking | {EVAL_FAILED: (1.0).hex()}
    assert resumed[:1] + resumed[2:] == whole[:1] + whole[2:]


def test_a_name_that_no_evaluation_has_is_said_at_the_first(files):
    config = configured(files, **{"run.keep_best": "-eval/score"})
    book = SimpleNamespace(run=SimpleNamespace(config=config), best_seen=False, best_of=[])
    books._note_best(book, {"objective/scores": 1.0})
    with pytest.raises(ConfigError, match="run.keep_best=-eval/score: .* valid: eval/scores"):
        books._note_best(book, {"objective/scores": 1.0, BEST: 2.0, "time/eval": 1.0})


def answers(texts, **parts):
    """One answer to each of some prompts; all sums are 1."""
    ones_N = np.ones(len(texts))
    sums = dict.fromkeys(("logprob", "ref_logprob", "entropy", "ref_plain", "tokens"), ones_N)
    ids = [[1]] * len(texts)
    return Answers(1, texts, texts, ids, ones_N > 0, ones_N, None, parts, sums)


@pytest.mark.parametrize(
    "texts, known",
    [
        (["a b a b"], {"distinct_1": 2 / 4, "distinct_2": 2 / 3, "distinct_3": 2 / 2}),
        (["so so", "so"], {"distinct_1": 1 / 3, "distinct_2": 1 / 1}),
        (["yes", "no", ""], {"distinct_1": 2 / 2}),
        (["", "  "], {}),
    ],
)
def test_a_measure_that_responses_are_too_short_for_is_left_out(texts, known):
    found = metrics(answers(texts))
    assert {name: x for name, x in found.items() if "distinct" in name} == {
        EVAL + name: x for name, x in known.items()
    }
    assert found["eval/scores"] == 1.0 and found["eval/unscored"] == 0.0
    assert all(np.isfinite(x) for x in found.values())


def test_a_task_without_a_held_out_row_is_left_out():
    rows = {"qa.rows": np.zeros(2), "sum.rows": np.array([1.0, 0.0])}
    found = metrics(answers(["a", "b"], qa=np.full(2, np.nan), sum=np.array([3.0, np.nan]), **rows))
    assert "eval/qa" not in found and found["eval/qa.rows"] == 0
    assert found["eval/sum"] == 3.0 and found["eval/sum.rows"] == 0.5
    # What is there and not finite is said.
    assert np.isnan(metrics(answers(["a"], sum=np.array([np.nan])))["eval/sum"])


def test_what_is_kept_as_best_may_be_lacking_at_first(files):
    config = configured(files, **{"run.keep_best": "eval/distinct_2"})
    book = SimpleNamespace(run=SimpleNamespace(config=config), best_seen=False, best_of=[])
    for found in (answers(["yes"]), answers(["so so"])):
        books._note_best(book, metrics(found) | {"time/eval": 1.0})
    assert book.best_of == [1.0]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"data.eval_path": None}, "run.eval_every=2: needs held-out rows in data.eval_path"),
        ({"run.eval_every": None}, "run.keep_best=eval/scores: needs run.eval_every"),
        ({"data.eval_path": ""}, "data.eval_path=: must not be empty"),
        (
            {"run.keep_best": "loss/value_avg"},
            "run.keep_best=loss/value_avg: the lowest is its best; nearest valid: -loss/value_avg ",
        ),
    ],
)
def test_options_that_do_not_go_together(files, changes, says):
    with pytest.raises(ConfigError, match=says):
        check_config(configured(files, **changes))
