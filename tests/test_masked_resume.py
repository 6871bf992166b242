"""A run that is stopped right before batches without any score ends as the one that was not."""

import json
from pathlib import Path

import jax
import numpy as np

from faults.launch import exact
from ppo_jax.config import replace
from ppo_jax.errors import Preempted, RewardError
from ppo_jax.experiment import Experiment
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.preemption import Preemption
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import run_folder
from ppo_jax.train import train
from tiny_runs import CONFIG

B = CONFIG.rollout.batch_size


def write_batches(folder: Path) -> str:
    """Prompts in the order of their batches, each with the number of its batch."""
    rows = [{"prompt": "abcdef"[n % 6 :], "batch": n // B} for n in range(6 * B)]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def rule(empty):
    """A rule on the device that gives nothing for the rows of some batches."""

    def by_rule(rollout, columns):
        numbers_B = columns["batch"]
        lacks_B = sum((numbers_B == number for number in empty), start=numbers_B < 0)
        return jax.numpy.where(lacks_B, jax.numpy.nan, rollout.lengths_B)

    return by_rule


def launch(folder, broken, stop_after=(), lacking=()):
    """The run's folder and what ended it. `broken`: batches for which the reward in Python raises;
    `lacking`: those for which the rule does; `stop_after`: those within which a signal comes."""
    preemption = Preemption()

    def texts(prompts, responses, batch):
        if batch[0] in stop_after:
            preemption.asked.set()
        if batch[0] in broken:
            raise ValueError("out of order")
        lengths = [float(len(text)) for text in responses]
        return {"length": lengths, "zero": [0.0] * len(prompts)}

    fixed = {"run.dir": str(folder), "data.path": write_batches(folder), "data.shuffle": False}
    config = replace(CONFIG, **fixed, **{"reward.on_error": "mask", "run.checkpoint_every": 6})
    ended = None
    try:
        reward = [rule(lacking), (0.5, texts)]
        train(config, Experiment("case", config, reward, folder, ""), preemption=preemption)
    except (Preempted, RewardError) as error:
        ended = error
    return run_folder(folder / "case" / "base" / "seed0"), ended


def cut_up(folder, stops, broken, lacking=()):
    """The same in as many starts as it takes, each stopped after the next of `stops`."""
    for stop in stops:
        _, ended = launch(folder, broken, [stop], lacking)
        assert isinstance(ended, Preempted) and f"saved step {stop + 1}" in str(ended)
    return launch(folder, broken, (), lacking)


def assert_same_run(left, right, steps: int) -> None:
    rows = exact(left)
    assert rows == exact(right) and [float.fromhex(row["step"]) for row in rows] == [*range(steps)]
    assert read_samples(left.samples) == read_samples(right.samples)
    one, other = (restore_params(folder.checkpoints, steps) for folder in (left, right))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_cut_in_three_before_empty_batches(tmp_path):
    """Two batches lack the scores of the rule alone, which are not counted; the next two those in
    Python."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, one = launch(tmp_path / "whole", broken={3, 4}, lacking={1, 2})
    cut, other = cut_up(tmp_path / "cut", [2, 3], broken={3, 4}, lacking={1, 2})
    assert one is None and other is None
    rows = read_metrics(whole.metrics)
    assert [row["reward/masked"] for row in rows] == [0, B, B, B, B, 0]
    assert [row["reward/failed"] for row in rows] == [0, 0, 0, B, B, 0]
    assert_same_run(whole, cut, 6)


def test_empty_batches_before_the_stop_are_counted(tmp_path):
    """The third in a row ends the run, in however many starts they came."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, one = launch(tmp_path / "whole", {2, 3, 4})
    cut, other = cut_up(tmp_path / "cut", [3], {2, 3, 4})
    for ended in (one, other):
        assert isinstance(ended, RewardError) and "3 batches in a row" in str(ended)
    assert_same_run(whole, cut, 4)
