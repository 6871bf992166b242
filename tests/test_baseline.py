"""A run's evaluations: by its judge, which nothing is trained on, and against where it began."""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from faults.launch import CACHE, exact, experiment, here, of
from ppo_jax import manifest
from ppo_jax.baseline import FILE, WIN_RATE
from ppo_jax.config import replace
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.evaluation import EVAL, EVAL_FAILED
from ppo_jax.experiment import Experiment
from ppo_jax.metrics import read_metrics
from ppo_jax.run_folder import RunFolder, read_status, run_folder
from ppo_jax.train import train
from tiny_runs import CONFIG, T, write_prompts

GOLD = [1.0 + n % 3 for n in range(10)]  # a column that the run's own prompts lack
HELD = [{"prompt": "xyz"[n % 3 :], "boost": 1.0, "gold": gold} for n, gold in enumerate(GOLD)]
BATCHES = 2  # of so many rows, at eight sequences a batch
BEST = "eval/judge"


def high_share(rollout, columns):
    """Bytes beyond ASCII over the room there is, which the judge does not care for."""
    return ((rollout.response_ids_BT >= 128) * rollout.mask_BT).sum(axis=1) / T


def plain_share(rollout, columns):
    """ASCII bytes over the room there is, times `gold`."""
    return ((rollout.response_ids_BT < 128) * rollout.mask_BT).sum(axis=1) / T * columns["gold"]


def length(prompts, responses, gold):
    """By characters, of which broken bytes are some too."""
    return [len(text) * own for text, own in zip(responses, gold, strict=True)]


def plain(text):
    """ASCII characters, whatever broken bytes stand among them."""
    return sum(ord(char) < 128 for char in text)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, HELD)))
    return write_prompts(folder), str(folder / "held.jsonl")


def launch(folder: Path, files, judge=None, **changes) -> RunFolder:
    """Six iterations, evaluated after each second one."""
    held_out = {"data.path": files[0], "data.eval_path": files[1], "run.eval_every": 2}
    held_out |= {"run.keep": 9, "run.keep_best": BEST, "run.dir": str(folder)}
    held_out["run.compile_cache"] = str(CACHE)
    config = replace(CONFIG, **{**held_out, **changes})
    judge = [(0.25, plain_share), (2.0, length)] if judge is None else judge
    found = Experiment("case", config, high_share, Path("case.py"), "", judge=judge)
    train(config, found)
    return run_folder(folder / "case" / "base" / "seed0")


@pytest.fixture(scope="module")
def straight(files, tmp_path_factory):
    """A run, and what the judge in Python was given."""
    seen = []

    @functools.wraps(length)
    def watched(prompts, responses, gold):
        seen.append((list(responses), list(gold)))
        return length(prompts, responses, gold)

    judge = [(0.25, plain_share), (2.0, watched)]
    return launch(tmp_path_factory.mktemp("straight"), files, judge), seen


def evaluated(folder: RunFolder) -> dict[int, dict[str, float]]:
    """The lines with held-out metrics, by the number of iterations before."""
    rows = read_metrics(folder.metrics)
    return {row["step"] + 1: row for row in rows if any(name.startswith(EVAL) for name in row)}


def kept(folder: RunFolder) -> dict:
    return json.loads((folder.root / FILE).read_text())


def test_the_judge_is_logged_with_its_parts(straight):
    folder, seen = straight
    assert [len(texts) for texts, _ in seen] == [8, 2] * 4  # at the beginning, then thrice
    found = evaluated(folder)
    assert list(found) == [2, 4, 6]
    for number, row in enumerate(found.values(), 1):
        texts, gold = (sum(x, []) for x in zip(*seen[BATCHES * number :][:BATCHES], strict=True))
        assert gold == GOLD
        lengths = np.mean([len(text) * own for text, own in zip(texts, GOLD, strict=True)])
        assert row["eval/judge.length"] == pytest.approx(lengths, rel=1e-6)
        shares = np.mean([plain(text) / T * own for text, own in zip(texts, GOLD, strict=True)])
        assert row["eval/judge.plain_share"] == pytest.approx(shares, rel=1e-6)
        assert row[BEST] == pytest.approx(0.25 * shares + 2 * lengths, rel=1e-6)
        assert row["eval/unjudged"] == 0
        assert row["eval/scores"] == row["eval/high_share"]  # the judge has no part in the reward
    assert not any("judge" in name for name in read_metrics(folder.metrics)[0])


def test_the_win_rate_is_over_the_policy_that_the_run_began_from(straight):
    folder, seen = straight
    first = kept(folder)
    assert first["by"] == "judge" and [row["line"] for row in first["responses"]] == [*range(1, 11)]
    texts = sum((texts for texts, _ in seen[:BATCHES]), [])
    assert [row["response"] for row in first["responses"]] == texts
    # The same prompt, so the same factor.
    decided = lambda texts: [0.25 * plain(text) / T + 2 * len(text) for text in texts]
    theirs = decided(texts)
    judged = [row["decided"] for row in first["responses"]]
    assert judged == pytest.approx([x * own for x, own in zip(theirs, GOLD, strict=True)], rel=1e-6)
    assert np.mean(judged) == pytest.approx(first["metrics"][BEST], rel=1e-6)
    rates = []
    for number, row in enumerate(evaluated(folder).values(), 1):
        ours = decided(sum((texts for texts, _ in seen[BATCHES * number :][:BATCHES]), []))
        wins = [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]
        rates.append(np.mean(wins))
        assert row[WIN_RATE] == pytest.approx(rates[-1], abs=1e-12)
    assert set(rates) - {0.0, 0.5, 1.0}  # some are won, and some are not


@pytest.fixture(scope="module")
def off(files, tmp_path_factory):
    """The same run without evaluations."""
    changes = {"run.eval_every": None, "run.keep_best": None}
    return launch(tmp_path_factory.mktemp("off"), files, **changes)


def test_what_is_trained_does_not_hang_on_the_judge(straight, off):
    own = lambda row: {name: x for name, x in row.items() if not name.startswith(EVAL)}
    assert list(map(own, exact(straight[0]))) == exact(off)
    assert not (off.root / FILE).exists() and not evaluated(off)


def test_the_best_is_the_judge_s(straight):
    folder, found = straight[0], evaluated(straight[0])
    record = lambda step: manifest.read_record(folder.checkpoints, step)["facts"]["goodness"]
    assert {step: record(step) for step in found} == {
        n: [BEST, row[BEST]] for n, row in found.items()
    }
    best = max(found, key=lambda step: found[step][BEST])
    assert manifest.best_step(folder.checkpoints) == best


def test_a_resumed_run_is_compared_with_the_same_responses(straight, files, tmp_path, capsys):
    began = (launch(tmp_path, files, **{"run.iterations": 2}).root / FILE).read_bytes()
    resumed = launch(tmp_path, files)
    assert exact(resumed) == exact(straight[0])
    assert (resumed.root / FILE).read_bytes() == (straight[0].root / FILE).read_bytes() == began
    assert capsys.readouterr().out.count("before training") == 1


@pytest.mark.parametrize("why", ["the run began without evaluations", "it is of other held-out"])
def test_without_a_baseline_there_is_no_win_rate(straight, off, files, tmp_path, capsys, why):
    """Gone on from, for an iteration, with evaluations, and with fewer rows."""
    begun = off if "without" in why else straight[0]
    shutil.copytree(begun.root, tmp_path / "case" / "base" / "seed0")
    folder = launch(tmp_path, files, **{"run.iterations": 7, "data.eval_rows": 5})
    said = capsys.readouterr().err
    assert f"{FILE}: {why}" in said and said.count(WIN_RATE) == 1
    row = evaluated(folder)[7]
    assert BEST in row and WIN_RATE not in row


def test_a_judge_that_fails_at_the_end_leaves_a_complete_run(straight, files, tmp_path, capsys):
    calls = []

    @functools.wraps(length)
    def failing(prompts, responses, gold):
        calls.append(1)
        if len(calls) == 3 * BATCHES + 1:
            raise ValueError("no luck")
        return length(prompts, responses, gold)

    folder = launch(tmp_path, files, [(0.25, plain_share), (2.0, failing)])
    assert "the last evaluation is lacking: reward judge.length raised" in capsys.readouterr().err
    status = read_status(folder)
    assert (status["status"], status["step"], status["saved"]) == ("done", 6, 6)
    whole, found = exact(straight[0]), exact(folder)
    assert found[:-1] == whole[:-1]
    own = {name: x for name, x in whole[-1].items() if not name.startswith(EVAL)}
    assert found[-1] == own | {EVAL_FAILED: (1.0).hex()}
    assert manifest.read_record(folder.checkpoints, 6)["facts"]["goodness"] is None


def test_a_judge_that_fails_at_the_beginning_ends_the_run(files, tmp_path):
    def failing(prompts, responses):
        raise ValueError("no luck")

    with pytest.raises(RewardError, match="judge.failing raised"):
        launch(tmp_path, files, failing)
    assert not read_metrics(run_folder(tmp_path / "case" / "base" / "seed0").metrics)


def test_a_judge_that_asks_for_a_column_that_is_not_there(files, tmp_path):
    with pytest.raises(ConfigError, match="reward judge.length: `gold` is not a column"):
        launch(tmp_path, (files[0], files[0]), length)


def test_a_judge_in_python_has_a_process_of_its_own(files, tmp_path):
    """Beside rewards on the device, which have none."""
    judge = "def JUDGE(prompts, responses, gold):\n    import os\n"
    judge += "    assert os.getppid() == PARENT\n    return gold\n"
    judge = judge.replace("PARENT", str(os.getpid()))
    changes = {"data__path": files[0], "data__eval_path": files[1], "run__eval_every": 1}
    path = experiment(tmp_path, reward=f"REWARD = ascii_share\n{judge}", **changes)
    flags = ["--run.dir", str(tmp_path / "runs"), "--run.iterations", "1"]
    assert here("train", str(path), *flags) == (0, "")
    (row,) = read_metrics(of(path, tmp_path / "runs").metrics)
    assert row[BEST] == row["eval/judge.JUDGE"] == pytest.approx(np.mean(GOLD))
    assert row[WIN_RATE] == 0.5  # what the responses are makes no difference
