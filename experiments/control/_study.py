"""Train a task with several seeds at once, judge what was learnt, show it and write it down."""

import functools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _settings import Settings, checked_config, shape_of
from _task import Task
from _training import Trained, episode_returns, train
from scipy import stats

from ppo_jax.errors import NumericalError, PPOJaxError
from ppo_jax.run_folder import environment
from ppo_jax.storage import write_atomic

POINTS = 50  # of a learning curve that is kept
LAST = 100  # episodes at the end of training, at the least, whose mean is reported
Given = TypeVar("Given")


def main(task: Task, defaults: Settings, doc: str) -> int:
    """Read the flags, train, test, show, write; the exit code."""
    settings = read_flags(defaults, doc)
    return ends_in_a_line(lambda: study(task, settings, Path(sys.argv[0]).stem))


def read_flags(defaults: Given, doc: str) -> Given:
    """`defaults` with the command line's values; an unknown flag raises SystemExit(2)."""
    config = tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands
    cls = type(defaults)
    return tyro.cli(cls, default=defaults, description=doc, config=config, use_underscores=True)


def ends_in_a_line(run) -> int:
    """The exit code of `run()`; what its user can act on is one line on stderr."""
    try:
        run()
    except PPOJaxError as error:
        print(f"control: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def study(task: Task, settings: Settings, name: str) -> dict[str, Any]:
    """Raises NumericalError where a loss or a gradient was not finite."""
    trained, seconds = run_seeds(task, settings)
    if skipped := int(np.sum(trained.history["skipped"])):
        raise NumericalError(
            f"learning_rate={settings.learning_rate}: {skipped} optimiser steps had a loss or a "
            "gradient that is not finite; expected none"
        )
    ended = last_episodes(trained.history)
    returns = {"last training episodes": ended} if np.isfinite(ended).all() else {}
    returns |= tested(task, settings, trained)
    if settings.gymnasium:
        from _gymnasium import gymnasium_returns

        label = f"{settings.gymnasium} episodes of Gymnasium's"
        returns[label] = gymnasium_returns(task, trained.params, settings.gymnasium)
    steps = settings.iterations * settings.environments * settings.horizon
    result = {
        "task": task.name,
        "environment_steps": steps,
        "returns": {label: summary(values) for label, values in returns.items()},
        "seconds": rounded(seconds),
        "steps_per_s": round(steps * settings.seeds / seconds["run"]),
        "update": update_facts(trained.history),
        "curves": curves(trained.history),
        "settings": {name: x for name, x in vars(settings).items() if name != "out"},
        **environment(),
    }
    show(result)
    write(result, settings.out, name)
    return result


def seed_keys(seeds: int) -> tuple[jax.Array, jax.Array]:
    """Keys of all seeds: to train with, and to test with."""
    keys_N2 = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(jnp.arange(seeds))
    return keys_N2[:, 0], keys_N2[:, 1]


def run_seeds(task: Task, settings: Settings) -> tuple[Trained, dict[str, float]]:
    """All seeds' trainings in one compiled program; seconds to compile and to run it."""
    config = checked_config(settings)
    hparams = jax.tree.map(jnp.float32, config.hparams)
    one = functools.partial(train, task, config, shape_of(settings))
    return timed(jax.vmap(one, in_axes=(None, 0)), hparams, seed_keys(settings.seeds)[0])


def timed(function, *arguments):
    """What `function` of the arguments is; and seconds, by the clock and of all cores' time, to
    compile it and to run it. Beside other work the cores' time says more."""
    wall, cores = [time.perf_counter()], [time.process_time()]

    def lap(result):
        wall.append(time.perf_counter())
        cores.append(time.process_time())
        return result

    program = lap(jax.jit(function).lower(*arguments).compile())
    result = lap(jax.block_until_ready(program(*arguments)))
    marks = {"compile": wall, "run": wall, "compile_cpu": cores, "run_cpu": cores}
    seconds = {
        name: mark[2] - mark[1] if name.startswith("run") else mark[1] - mark[0]
        for name, mark in marks.items()
    }
    return result, seconds


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(s, 2) for name, s in seconds.items()}


def tested(task: Task, settings: Settings, trained: Trained) -> dict[str, np.ndarray]:
    """By seed, the mean return of new episodes with the last policy: actions drawn as in training,
    and the likeliest."""
    _, keys = seed_keys(settings.seeds)
    returns = {}
    for label, greedy in (("new episodes", False), ("new episodes, likeliest actions", True)):
        test = functools.partial(
            episode_returns, task, episodes=settings.test_episodes, greedy=greedy
        )
        returns[label] = np.asarray(jax.jit(jax.vmap(test))(trained.params, keys)).mean(axis=1)
    return returns


def last_episodes(history: Mapping[str, Any]) -> np.ndarray:
    """By seed, the mean return of the `LAST` episodes that ended in training, and of those that
    ended in the same iteration as the first of them; NaN where none did."""
    sums_NI, counts_NI = (np.asarray(history[name], float) for name in ("returns", "episodes"))
    means = []
    for sums_I, counts_I in zip(sums_NI, counts_NI, strict=True):
        take = int(np.searchsorted(np.cumsum(counts_I[::-1]), LAST)) + 1
        count = counts_I[-take:].sum()
        means.append(sums_I[-take:].sum() / count if count else np.nan)
    return np.asarray(means)


def curves(history: Mapping[str, Any]) -> dict[str, list]:
    """Each seed's mean return over the episodes that ended in a stretch of the training; None where
    none did. `iteration` is where the stretch ends."""
    sums_NI, counts_NI = (np.asarray(history[name], float) for name in ("returns", "episodes"))
    edges = np.linspace(0, sums_NI.shape[1], min(POINTS, sums_NI.shape[1]) + 1).astype(int)
    total = lambda x_NI: np.add.reduceat(x_NI, edges[:-1], axis=1)
    sums_NP, counts_NP = total(sums_NI), total(counts_NI)
    by_seed = [
        [round(s / n, 2) if n else None for s, n in zip(*row, strict=True)]
        for row in zip(sums_NP.tolist(), counts_NP.tolist(), strict=True)
    ]
    return {"iteration": edges[1:].tolist(), "return_by_seed": by_seed}


def update_facts(history: Mapping[str, Any]) -> dict[str, float]:
    """Over all seeds: the largest |ratio - 1| of an iteration's first minibatch, which should be
    rounding; and what the last iterations' updates were like."""
    facts = {"ratio_max_dev_first": float(np.max(history["ratio_max_dev_first"]))}
    for name in ("approxkl", "clipfrac", "entropy"):
        facts[f"{name}_last"] = float(np.mean(np.asarray(history[name])[:, -LAST:]))
    return {name: float(f"{value:.4g}") for name, value in facts.items()}


def summary(values_N: np.ndarray) -> dict[str, Any]:
    """Over seeds: mean, its 95 % interval by Student's t, extremes, and every seed's."""
    mean, interval = float(values_N.mean()), None
    if len(values_N) > 1:
        half = stats.sem(values_N) * stats.t.ppf(0.975, len(values_N) - 1)
        interval = [round(mean - half, 2), round(mean + half, 2)]
    extremes = {"min": round(float(values_N.min()), 2), "max": round(float(values_N.max()), 2)}
    by_seed = [round(float(value), 2) for value in values_N]
    return {"mean": round(mean, 2), "ci95": interval, **extremes, "by_seed": by_seed}


def show(result: Mapping[str, Any]) -> None:
    seconds, seeds = result["seconds"], result["settings"]["seeds"]
    print(f"{result['task']}: {seeds} seeds of {result['environment_steps']:,} steps each")
    for label, numbers in result["returns"].items():
        interval = "" if numbers["ci95"] is None else " [{:.2f}, {:.2f}]".format(*numbers["ci95"])
        print(
            f"  {label:<34} {numbers['mean']:8.2f}{interval}"
            f"  min {numbers['min']:.2f}  max {numbers['max']:.2f}"
        )
    print(f"  seconds: {spread(seconds)} ({result['steps_per_s']:,} steps/s over all seeds)")
    print(f"  update: {spread(result['update'])}")


def spread(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:g}" for name, value in numbers.items())


def write(result: Mapping[str, Any], out: Path | None, name: str) -> None:
    """As JSON, a line for each key."""
    path = Path("runs/control") / f"{name}.json" if out is None else out
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f" {json.dumps(key)}: {json.dumps(x, allow_nan=False)}" for key, x in result.items())
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    print(f"  written to {path}")
