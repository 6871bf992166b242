"""A run stopped and resumed equals the uninterrupted one bit for bit; what ends a run is said."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from faults.launch import exact
from ppo_jax import manifest
from ppo_jax.config import replace
from ppo_jax.errors import NumericalError, RewardError
from ppo_jax.experiment import Experiment
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.train import train
from tiny_runs import CONFIG, ascii_share, ascii_text, half_and_half, write_prompts


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("data"))


def launch(folder: Path, data: str, reward=ascii_share, **changes) -> RunFolder:
    config = replace(CONFIG, **{"run.dir": str(folder), "data.path": data}, **changes)
    train(config, Experiment("case", config, reward, Path("case.py"), ""))
    return opened(folder)


def opened(folder: Path) -> RunFolder:
    return run_folder(folder / "case" / "base" / "seed0")


def assert_same_run(left: RunFolder, right: RunFolder) -> None:
    rows = exact(left)
    assert [float.fromhex(row["step"]) for row in rows] == list(range(6))
    assert rows == exact(right) and len(rows[0]) > 30
    assert read_samples(left.samples) == read_samples(right.samples)
    assert [row["step"] for row in read_samples(left.samples)] == [
        s for s in range(6) for _ in "ab"
    ]
    one, other = (restore_params(folder.checkpoints, 6) for folder in (left, right))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert status(left)["status"] == status(right)["status"] == "done"
    assert status(left)["step"] == status(right)["step"] == 6


def status(folder: RunFolder) -> dict:
    return json.loads(folder.status.read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory, prompts):
    return launch(tmp_path_factory.mktemp("straight"), prompts)


def test_stopped_and_resumed_equals_straight(straight, prompts, tmp_path, capsys):
    half = launch(tmp_path, prompts, **{"run.iterations": 3})
    assert len(read_metrics(half.metrics)) == 3
    capsys.readouterr()
    resumed = launch(tmp_path, prompts)
    assert f"{resumed.root}: resumed at iteration 3" in capsys.readouterr().out
    assert_same_run(straight, resumed)


def test_a_finished_run_does_nothing_and_says_so(straight, prompts, capsys):
    before = {path: path.read_bytes() for path in (straight.metrics, straight.samples)}
    again = launch(straight.root.parents[2], prompts)
    said = capsys.readouterr().out
    assert f"{again.root}: already complete at iteration 6, nothing to do" in said
    assert all(path.read_bytes() == content for path, content in before.items())
    assert status(again) == status(straight)


def test_a_warm_up_too_long_for_the_run_is_cut_and_said(prompts, tmp_path, capsys):
    """In two iterations of which the critic alone learns in the first."""
    changes = {"run.iterations": 2, "optim.warmup": 20, "ppo.critic_warmup": 6}
    folder = launch(tmp_path, prompts, **changes)
    said = capsys.readouterr().err
    for key, asked in (("optim.warmup", 20), ("ppo.critic_warmup", 6)):
        assert f"{key}={asked}: cut to 1, run.iterations=2 has no more before its last" in said
    first, last = read_metrics(folder.metrics)
    assert abs(first["policy/approxkl_avg"]) < 1e-9 < last["policy/approxkl_avg"]
    assert first["lr"] == last["lr"] == np.float32(CONFIG.hparams.learning_rate)


def raising_at(call: int):
    """The reward on the host, which raises at one of its calls."""
    calls = []

    @functools.wraps(ascii_text)
    def reward(prompts, responses, boost):
        calls.append(len(prompts))
        if len(calls) - 1 == call:
            raise ValueError("no luck")
        return ascii_text(prompts, responses, boost)

    return reward


def test_a_run_with_a_reward_in_python_dies_and_goes_on(straight, prompts, tmp_path):
    """The state before the failure has been saved, whenever the last checkpoint was."""
    says = r"reward ascii_text raised on a batch of 8 rows.*: ValueError: no luck"
    with pytest.raises(RewardError, match=says) as error:
        launch(tmp_path, prompts, half_and_half(raising_at(5)))
    assert error.value.exit_code == 7 and "\n" not in str(error.value)
    failed = opened(tmp_path)
    assert status(failed)["status"] == "failed" and "no luck" in status(failed)["error"]
    assert len(read_metrics(failed.metrics)) == status(failed)["step"] > 3  # the checkpoint's
    resumed = launch(tmp_path, prompts, half_and_half())
    shown = {"run.show_prompts": 2}  # which alters nothing
    whole = launch(tmp_path / "whole", prompts, half_and_half(), **shown)
    assert_same_run(whole, resumed)
    for host, device in zip(
        read_metrics(whole.metrics), read_metrics(straight.metrics), strict=True
    ):
        np.testing.assert_allclose(host["objective/scores"], device["objective/scores"], rtol=1e-5)


def picky(prompts, responses):
    return [float("nan") if row == 3 else 1.0 for row, _ in enumerate(prompts)]


def test_a_score_that_is_no_number_names_function_and_row(prompts, tmp_path):
    options = {"data.shuffle": False, "run.iterations": 1}
    says = r"reward picky, row 3 \(prompt 'defdef'\): 'nan' of type float"
    with pytest.raises(RewardError, match=says):
        launch(tmp_path, prompts, [(0.5, ascii_share), (0.5, picky)], **options)


def test_too_many_bad_iterations_end_the_run(tmp_path):
    """Boosts whose square is beyond float32."""
    with pytest.raises(NumericalError, match="iteration 1: 2 iterations in a row") as error:
        launch(tmp_path, write_prompts(tmp_path, boost=1e30), **{"optim.max_nonfinite": 2})
    assert error.value.exit_code == 3 and "optim.max_nonfinite=2" in str(error.value)
    folder = opened(tmp_path)
    rows = read_metrics(folder.metrics)
    assert [row["update/nonfinite_in_row"] for row in rows] == [1, 2, 3]  # one was on its way
    assert manifest.latest_step(folder.checkpoints) == 3 and "step 3 is saved" in str(error.value)
    saved = restore_params(folder.checkpoints)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
    assert all(row["update/skipped_nonfinite"] == 4 for row in rows)
    assert np.isinf(rows[0]["objective/scores"]) and abs(rows[1]["objective/kl"]) < 1e-5
    assert status(folder)["status"] == "failed"
