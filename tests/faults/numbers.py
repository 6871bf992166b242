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
from ppo_jax.run_folder import RunFolder

GOLDEN = Path(__file__).with_name("golden.jsonl")

ONCE = """
import jax.numpy as jnp
from ppo_jax import step as program
rates, update, now = program.optimisers, program.ppo_update, {}
def optimisers(config, hparams, step):
    now["step"] = step
    return rates(config, hparams, step)
def ppo_update(config, hparams, optimisers, evaluate, params, opt_state, rows, *rest, **more):
    rows = rows._replace(
        advantages_BT=jnp.where(now["step"] == 2, jnp.inf, rows.advantages_BT),
        returns_BT=jnp.where(now["step"] == 2, jnp.nan, rows.returns_BT),
    )
    return update(config, hparams, optimisers, evaluate, params, opt_state, rows, *rest, **more)
program.optimisers, program.ppo_update = optimisers, ppo_update
REWARD = ascii_share
"""
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
    path = experiment(folder)
    six = ("--rollout.batch_size", "6", "--ppo.minibatches", "1", "--parallel.data", "4")
    ended = launch(path, folder / "runs", *six, devices=4)
    says(ended, 2, "rollout.batch_size=6: 4 devices cannot share", "nearest valid: 4 or 8")
    assert not ended.out, ended.out
    seen = [ended.last.removeprefix("ppo-jax: error: ")]
    for flags in (
        ("--ppo.minibatches", "3"),
        ("--ppo.microbatches", "3"),
        ("--rollout.samples_per_prompt", "3"),
    ):
        code, err = here("train", str(path), "--run.dir", str(folder / "runs"), *flags)
        last = err.strip().splitlines()[-1]
        assert code == 2 and "nearest valid" in last, f"{flags}: {code} {err}"
        seen.append(last.removeprefix("ppo-jax: error: "))
    return "; ".join(seen)


@fault(
    "F16",
    "numbers that are not finite",
    injected="a device reward that is NaN from the start on; inf in some rows, masked; advantages "
    "and returns, and so losses and gradients, that are not finite in one iteration",
    expected="not applied, counted, named; code 3 after optim.max_nonfinite in a row; none saved; "
    "after one such iteration the run goes on and ends with code 0",
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
    assert same_finite_params(run, 2, 3), "an update was applied"
    some = POISON.format(expression="jnp.where(rollout.ended_B, jnp.inf, 1.0)")
    path = experiment(folder, name="some", reward=some, reward__on_error="mask")
    rows = read_metrics(finish(path, folder / "runs").metrics)
    assert sum(row["update/skipped_nonfinite"] for row in rows) == 0
    assert 0 < sum(row["reward/masked"] for row in rows), "no row was masked"
    return f"{ended.last.removeprefix('ppo-jax: error: ')}; {one_iteration(folder)}"


def one_iteration(folder: Path) -> str:
    path = experiment(folder, name="once", reward=ONCE, run__checkpoint_every=1, run__keep=9)
    ended = launch(path, folder / "runs")
    assert ended.code == 0 and "steps skipped" in ended.err, f"{ended.code} {ended.err}"
    run = of(path, folder / "runs")
    rows = read_metrics(run.metrics)
    finite = [np.isfinite([row["loss/policy_avg"], row["loss/value_avg"]]).tolist() for row in rows]
    assert finite == [[True] * 2] * 2 + [[False] * 2] + [[True] * 2] * 3, finite
    skipped = [row["update/skipped_nonfinite"] for row in rows]
    assert skipped == [0, 0, rows[2]["update/steps"], 0, 0, 0], skipped
    assert [row["update/nonfinite_in_row"] for row in rows] == [0, 0, 1, 0, 0, 0], rows
    assert [same_finite_params(run, step, step + 1) for step in range(1, 6)] == [
        False, True, False, False, False
    ]  # fmt: skip
    return f"once: {skipped[2]:.0f} steps of iteration 2 skipped, code 0"


def same_finite_params(run: RunFolder, step: int, other: int) -> bool:
    """Whether two checkpoints have the same weights, all of which must be finite."""
    left, right = (jax.tree.leaves(restore_params(run.checkpoints, n)) for n in (step, other))
    assert all(np.isfinite(leaf).all() for leaf in left + right), f"step {step} or {other}"
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


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
