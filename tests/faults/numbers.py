"""Numbers that are not finite, batches that do not divide, parity (F15, F16, F20, F35, F36)."""

import json
from pathlib import Path

import jax
import numpy as np

from faults.damage import says
from faults.launch import CLOCK, assert_same, experiment, finish, here, launch, of
from faults.table import fault
from ppo_jax import manifest
from ppo_jax.metrics import read_metrics
from ppo_jax.restore import restore_params

GOLDEN = Path(__file__).with_name("golden.jsonl")

POISON = """
import jax.numpy as jnp
def poison(rollout, columns):
    return {expression}
REWARD = poison
"""


@fault(
    "F15",
    "a batch that does not divide",
    injected="6 sequences on 4 devices; minibatches, microbatches, samples a prompt that don't fit",
    expected="code 2 before anything is compiled, with the numbers and the nearest valid ones",
    fast=True,
)
def indivisible(folder: Path) -> str:
    path, seen = str(experiment(folder)), []
    for flags in (
        ("--rollout.batch_size", "6", "--ppo.minibatches", "1", "--parallel.data", "4"),
        ("--ppo.minibatches", "3"),
        ("--ppo.microbatches", "3"),
        ("--rollout.samples_per_prompt", "3"),
    ):
        code, err = here("train", path, "--run.dir", str(folder / "runs"), *flags)
        last = err.strip().splitlines()[-1]
        assert code == 2 and "nearest valid" in last, f"{flags}: {code} {err}"
        seen.append(last.removeprefix("ppo-jax: error: "))
    return "; ".join(seen)


@fault(
    "F16",
    "numbers that are not finite",
    injected="a device reward that is NaN, or inf, from the start on or in one iteration",
    expected="not applied, counted, named; code 3 after optim.max_nonfinite in a row; no NaN saved",
)
def not_finite(folder: Path) -> str:
    always = POISON.format(expression="jnp.full(rollout.lengths_B.shape, jnp.nan)")
    path = experiment(folder, name="always", reward=always, run__checkpoint_every=1)
    ended = launch(path, folder / "runs")
    says(ended, 3, "3 iterations in a row", "optim.max_nonfinite=3", "is saved")
    run = of(path, folder / "runs")
    rows = read_metrics(run.metrics)
    assert [row["update/nonfinite_in_row"] for row in rows] == [1, 2, 3], rows
    assert "reward" in ended.err.splitlines()[0], ended.err  # the warning names what it was
    manifest.verify(run.checkpoints, manifest.latest_step(run.checkpoints))
    before, after = (restore_params(run.checkpoints, step) for step in (2, 3))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(other).all() and np.array_equal(one, other), "an update was applied"
    some = POISON.format(expression="jnp.where(rollout.ended_B, jnp.inf, 1.0)")
    path = experiment(folder, name="some", reward=some, reward__on_error="mask")
    rows = read_metrics(finish(path, folder / "runs").metrics)
    assert sum(row["update/skipped_nonfinite"] for row in rows) == 0
    assert 0 < sum(row["reward/masked"] for row in rows), "no row was masked"
    return ended.last.removeprefix("ppo-jax: error: ")


@fault(
    "F20",
    "a reward that draws at random",
    injected="a host reward that adds `random` and `numpy.random` numbers; killed in between",
    expected="drawn alike when resumed: the end is that of the run left alone",
)
def random_reward(folder: Path) -> str:
    reward = """
import random
import numpy as np
def noisy(prompts, responses, seeds):
    own = [np.random.default_rng(seed).random() for seed in seeds]
    return [x + random.random() + np.random.rand() for x in own]
REWARD = noisy
"""
    path = experiment(folder, reward=reward, run__iterations=16, run__checkpoint_every=4)
    whole = finish(path, folder / "whole")
    launch(path, folder / "runs", PPO_JAX_FAULT="kill@step:11")
    assert_same(finish(path, folder / "runs"), whole)
    return "16 iterations equal"


@fault(
    "F35",
    "golden metrics",
    injected="20 iterations beside the numbers in tests/faults/golden.jsonl",
    expected="to 1e-3 relative: another processor or version rounds otherwise",
    fast=True,
)
def golden(folder: Path) -> str:
    path = experiment(folder, run__iterations=20, run__checkpoint_every=20)
    rows = read_metrics(finish(path, folder / "runs").metrics)
    rows = [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows]
    expected = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(rows) == len(expected) == 20
    worst = 0.0
    for row, want in zip(rows, expected, strict=True):
        for name in ("objective/scores", "objective/kl", "loss/value_avg", "rollout/length_mean"):
            gap = abs(row[name] - want[name]) / max(1e-2, abs(want[name]))
            worst = max(worst, gap)
    assert worst <= 1e-3, f"largest relative difference {worst:.1e}"
    return f"largest relative difference {worst:.1e}"


@fault(
    "F36",
    "sampler and trainer agree",
    injected="nothing",
    expected="first minibatch's ratio 1 to 1e-5, logprob gap below 1e-4, logged in each iteration",
)
def parity(folder: Path) -> str:
    path = experiment(folder, run__iterations=6, rollout__slots=4)
    rows = read_metrics(finish(path, folder / "runs").metrics)
    worst = {
        name: max(row[name] for row in rows)
        for name in ("val/ratio_first_max_dev", "rollout/logprob_gap_max", "policy/approxkl_first")
    }
    assert worst["val/ratio_first_max_dev"] <= 1e-5, worst
    assert worst["rollout/logprob_gap_max"] <= 1e-4, worst
    assert worst["policy/approxkl_first"] <= 1e-10, worst
    return ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
