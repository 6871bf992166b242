"""Several runs of one shape as one program over their states, hyper-parameters, prompts and keys.

What is alike in all runs, by value, is in the program once. The rest has a leading axis of runs,
which are dealt to the devices: a run is on one, and no device waits for another. What a device has
it takes at once, by `jax.vmap`. There a branch is computed for all of them and a loop goes on for
all, so these have no queue of rows and no parts by tokens, and the decode loop ends when the last
row of all has.

A processor's matrix products of several runs are slower than of one at a time: it takes one run
after the other, each computed as it is alone, and each of its cores is a device (`use_cores`).
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppo_jax.baseline import compared, open_baseline
from ppo_jax.compiled import KEEP, Built, program
from ppo_jax.config import Config, ParallelOptions, replace
from ppo_jax.decoder import make_decoder
from ppo_jax.errors import ConfigError
from ppo_jax.evaluate import examination
from ppo_jax.evaluation import Answers, answers_of, joined, question_key, questions
from ppo_jax.kind import PPO
from ppo_jax.prepare import Opened, Run, make_setup
from ppo_jax.programs import Finished, Stepper
from ppo_jax.rewards.base import Part
from ppo_jax.run_folder import RunFolder
from ppo_jax.setup import Setup
from ppo_jax.sharding import AT_ONCE, RUNS, make_mesh, make_runs_mesh
from ppo_jax.step import train_step
from ppo_jax.types import Prompts, PyTree, TrainState


class Together(NamedTuple):
    """Runs that share a program; arrays [N, ...] of N runs, which are a few more than there are
    where devices could not share them evenly."""

    runs: list[Run]
    mesh: Mesh  # of the devices that share them
    setup: Setup  # of a run
    judging: Setup  # with the judge beside the rewards
    hparams: PyTree
    states: TrainState
    frozen: PyTree
    axes: PyTree  # of each leaf of `frozen`: 0, or None where all runs have the same


def config_of(config: Config) -> Config:
    """The config of a run that shares a program: on one device of its own. Raises ConfigError where
    the run is to be on several."""
    sizes = config.parallel.data, config.parallel.fsdp, config.parallel.tensor
    if any(size not in (-1, 1) for size in sizes) or config.parallel.offload != "none":
        name = next(
            (n for n, s in zip(("data", "fsdp", "tensor"), sizes, strict=True) if s not in (-1, 1)),
            "offload",
        )
        said = f"parallel.{name}={getattr(config.parallel, name)}"
        raise ConfigError(f"{said}: runs that share a program are on a device each; leave it out")
    return dataclasses.replace(config, parallel=ParallelOptions(data=1, fsdp=1, tensor=1))


def shape_of(config: Config) -> Any:
    """What runs that share a program have in common: all but seed, folder and the values of
    hyper-parameters; hashable."""
    given = {key: value is not None for key, value in vars(config.hparams).items()}
    config = replace(config, **{"run.seed": 0, "run.cell": ""})
    return dataclasses.replace(config, hparams=type(config.hparams)()), tuple(given.items())


def join(opened: Opened, prepared: Sequence[tuple[Run, TrainState, PyTree]]) -> Together:
    """The prepared runs as one; `opened` is the first of them. Their own arrays are given up."""
    runs = [run for run, _, _ in prepared]
    mesh = make_runs_mesh(len(runs))
    axes = jax.tree.map(_axis, *(frozen for _, _, frozen in prepared), is_leaf=_is_none)
    states = _stacked(mesh, [state for _, state, _ in prepared])
    whole = NamedSharding(mesh, P())
    frozen = jax.tree.map(
        lambda axis, *x: jax.device_put(x[0], whole) if axis is None else _stack(mesh, x),
        axes,
        *(frozen for _, _, frozen in prepared),
        is_leaf=_is_none,
    )
    hparams = _stacked(mesh, [run.hparams for run in runs])
    setups = _setup(opened), _setup(opened, opened.judge)
    return Together(runs, mesh, *setups, hparams, states, frozen, axes)


def in_turn() -> bool:
    """Whether a device takes its runs one after the other: a processor's, of which two cores were
    measured."""
    return jax.devices()[0].platform == "cpu"


def use_cores() -> None:
    """Make each core that this process may use a device, unless it was said how many there are to
    be, or jax has looked for devices: then they are what they are."""
    if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", mine)


def _axis(*leaves: Any) -> int | None:
    """None where all runs have the same."""
    first, *others = leaves
    if first is None or all(bool(jnp.array_equal(first, other)) for other in others):
        return None
    return 0


def _stacked(mesh: Mesh, trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: _stack(mesh, leaves), *trees)


def _stack(mesh: Mesh, leaves: Sequence[Any]) -> jax.Array:
    return jax.device_put(jnp.stack(_filled(mesh, leaves)), _split(mesh))


def _filled(mesh: Mesh, runs: Sequence[Any]) -> list[Any]:
    """With the last one again as often as makes all devices have as many; nobody looks at those."""
    return [*runs, *[runs[-1]] * (-len(runs) % mesh.size)]


def _split(mesh: Mesh) -> NamedSharding:
    """Of arrays [N, ...]."""
    return NamedSharding(mesh, P(RUNS))


def _setup(opened: Opened, judge: Sequence[Part] = ()) -> Setup:
    """Of a run on whichever device it is: `mesh` is there for its size."""
    mesh, together = make_mesh(opened.config.parallel), not in_turn()
    if together:
        options = {"rollout.slots": None, "ppo.token_sizes": None}
        opened = opened._replace(config=replace(opened.config, **options))
    decoder = critic = make_decoder(opened.source.config, opened.config.model, mesh)
    if opened.critic is not None:
        critic = make_decoder(opened.critic.config, opened.config.model, mesh)
    return make_setup(opened, mesh, decoder, critic, judge)._replace(together=together)


def over_runs(together: Together, function: Callable, in_axes: tuple) -> Callable:
    """`jax.vmap(function, in_axes)` on every device, over the runs that it has."""

    def on_devices(*arguments):
        axes = jax.tree.broadcast(in_axes, arguments, is_leaf=_is_none)
        specs = jax.tree.map(lambda axis: P() if axis is None else P(RUNS), axes, is_leaf=_is_none)
        own = jax.shard_map(
            jax.vmap(function, in_axes=axes, axis_name=AT_ONCE)
            if together.setup.together
            else _one_by_one(function, axes),
            mesh=together.mesh,
            in_specs=specs,
            out_specs=P(RUNS),
            check_vma=False,  # carries of loops start as constants, the same on every device
        )
        return own(*arguments)

    return on_devices


def _one_by_one(function: Callable, axes: tuple) -> Callable:
    """What `jax.vmap(function, axes)` gives, run after run; the arrays of all runs are there twice:
    as they were, and as they become."""

    def each(*arguments):
        pick = lambda own: jax.tree.map(
            lambda axis, x: x if (axis == 0) is own else None, axes, arguments, is_leaf=_is_none
        )
        alike = pick(False)
        given = lambda run: jax.tree.map(
            lambda own, x: x if own is None else own, run, alike, is_leaf=_is_none
        )
        return jax.lax.map(lambda run: function(*given(run)), pick(True))

    return each


def _is_none(x: Any) -> bool:
    return x is None


def run_of(tree: PyTree, index: int) -> PyTree:
    """The arrays of one run."""
    return jax.tree.map(lambda x: x[index], tree)


def make_stepper(together: Together) -> Stepper:
    """`dispatch` of one iteration of all runs; its Finished has their arrays [N, ...]."""
    built, setup = Built({}, {}), together.setup
    step = over_runs(together, functools.partial(train_step, setup), (0, together.axes, 0, 0))
    split = _split(together.mesh)
    step_program = program(built, "train_step", step, (KEEP, split, split, split), donate=True)

    def dispatch(states, frozen, number: int, prompts: Prompts):
        on_devices = jax.device_put(prompts, split)
        stepped = step_program(states, frozen, together.hparams, on_devices)
        states, metrics, rollout, scores_NB = stepped
        return states, Finished(number, prompts, metrics, rollout, scores_NB, {})

    return Stepper(dispatch, *built)


def make_batch(together: Together, step: int) -> Prompts:
    """Each run's own prompts [N, B, ...], on the host."""
    batches = [PPO.make_batch(run, step) for run in together.runs]
    batches = _filled(together.mesh, batches)
    return jax.tree.map(lambda *rows: np.stack(rows), *batches)


def make_judge(together: Together, folders: Sequence[RunFolder], start: int):
    """`judge(states, frozen)`: the metrics of the held-out prompts, of each run, as
    `baseline.make_judge` has them."""
    answer = _make_answers(together)
    unknown: list[Answers | None] = [None] * len(folders)
    first = answer(together.states, together.frozen) if start == 0 else unknown
    each = zip(together.runs, folders, first, strict=True)
    baselines = [open_baseline(run, folder, own) for run, folder, own in each]

    def judge(states: TrainState, frozen: PyTree) -> list[dict[str, float]]:
        answers = answer(states, frozen)
        return [compared(*pair) for pair in zip(answers, baselines, strict=True)]

    return judge


def _make_answers(together: Together):
    """`answer(states, frozen)`: the answers to the held-out prompts, of each run."""
    setup, held = together.judging, [run.held for run in together.runs]
    axes = (0, 0 if together.states.ref is not None else None, together.axes, 0, None, 0)
    examine = over_runs(together, examination(setup), axes)
    split, whole = _split(together.mesh), NamedSharding(together.mesh, P())
    ask = program(Built({}, {}), "examination", examine, split)
    keys = _stack(together.mesh, [question_key(run.config.run.seed) for run in together.runs])

    def answer(states: TrainState, frozen: PyTree) -> list[Answers]:
        pieces: list[list[Answers]] = [[] for _ in held]
        for prompts, count in questions(held[0], 1):
            on_devices = jax.device_put(prompts, whole)
            asked = (states.params, states.ref, frozen, together.hparams.temperature)
            found = jax.device_get(ask(*asked, on_devices, keys))
            for index, run in enumerate(held):
                own = answers_of(run, 1, count, prompts, *run_of(found, index))
                pieces[index].append(cast(Answers, own))
        return [joined(own) for own in pieces]

    return answer
