"""The compiled programs of an iteration, and the function that dispatches one.

One program; or, with rewards that are ordinary Python, three with the host between them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ppo_jax import data, freed_memory
from ppo_jax.errors import RewardError
from ppo_jax.evaluate import response_texts
from ppo_jax.prepare import Run
from ppo_jax.rewards import base
from ppo_jax.sharding import batch_sharding, put_batch, replicated
from ppo_jax.step import device_scores, learn, sample_rollout, score_rollout, train_step
from ppo_jax.types import Prompts, PyTree, Rollout, TrainState


class Finished(NamedTuple):
    """An iteration that has been dispatched; its arrays may still be on their way."""

    step: int
    prompts: Prompts  # on the host
    metrics: dict[str, jax.Array]
    rollout: Rollout
    scores_B: jax.Array
    times: dict[str, float]  # seconds


class Stepper(NamedTuple):
    """`dispatch(state, frozen, step, prompts) -> (state, Finished)`, and what it has compiled."""

    dispatch: Callable[[TrainState, PyTree, int, Prompts], tuple[TrainState, Finished]]
    compiled: dict[str, jax.stages.Compiled]  # by program name, filled by the first dispatch
    compile_seconds: dict[str, float]  # by program name: tracing, lowering and compilation


class _Built(NamedTuple):
    compiled: dict[str, jax.stages.Compiled]
    compile_seconds: dict[str, float]


def make_stepper(run: Run) -> Stepper:
    built = _Built({}, {})
    return Stepper(_cut(run, built) if run.has_host_reward else _fused(run, built), *built)


def _fused(run: Run, built: _Built):
    mesh = run.setup.mesh
    whole, rows = replicated(mesh), batch_sharding(mesh)
    step_program = _program(
        built, "train_step", run, train_step, (whole, whole, rows, rows), donate=True
    )

    def dispatch(state, frozen, step: int, prompts: Prompts):
        on_device = put_batch(mesh, prompts)
        state, metrics, rollout, scores_B = step_program(state, frozen, run.hparams, on_device)
        return state, Finished(step, prompts, metrics, rollout, scores_B, {})

    return dispatch


def _cut(run: Run, built: _Built):
    mesh = run.setup.mesh
    whole, rows = replicated(mesh), batch_sharding(mesh)
    sample = _program(built, "sample", run, sample_rollout, rows)
    score = _program(built, "score", run, _score, rows)
    update = _program(built, "update", run, learn, (whole, whole, rows, rows), donate=True)
    names: list[str] = []  # of the host scores, as the first batch had them

    def dispatch(state, frozen, step: int, prompts: Prompts):
        on_device = put_batch(mesh, prompts)
        rollout = sample(state, frozen, run.hparams, on_device)
        # Dispatched at once, so that the scoring passes overlap the reward on the host.
        scored, raw = score(state, frozen, run.hparams, rollout, on_device.columns)
        clock = time.monotonic()
        scores = host_scores(run, prompts, rollout)
        _check_names(names, scores)
        raw = raw | put_batch(mesh, scores)
        times = {"time/reward": time.monotonic() - clock}
        state, metrics, rollout, scores_B = update(state, frozen, run.hparams, rollout, scored, raw)
        return state, Finished(step, prompts, metrics, rollout, scores_B, times)

    return dispatch


def _check_names(names: list[str], scores: dict) -> None:
    """A host reward must score every batch under the same names: they are part of the program."""
    if not names:
        names.extend(scores)
    if set(names) != set(scores):
        raise RewardError(
            f"reward: returned the scores {sorted(scores)}, in the first batch {sorted(names)}; "
            "expected the same names in every batch"
        )


def _score(setup, state, frozen, hparams, rollout, columns):
    scored = score_rollout(setup, state, frozen, hparams, rollout)
    return scored, device_scores(setup, frozen, rollout, columns)


def _program(built: _Built, name: str, run: Run, function, out_shardings, *, donate=False):
    """`function(setup, …)` compiled by the first call, for its arguments' shapes and for good: a
    later call with others is an error instead of another compilation."""

    def traced(*arguments):
        return function(run.setup, *arguments)

    traced.__name__ = name
    jitted = jax.jit(traced, donate_argnums=0 if donate else (), out_shardings=out_shardings)

    def call(*arguments):
        if name not in built.compiled:
            clock = time.monotonic()
            built.compiled[name] = jitted.lower(*arguments).compile()
            built.compile_seconds[name] = time.monotonic() - clock
            freed_memory.give_back()
        return built.compiled[name](*arguments)

    return call


def host_scores(run: Run, prompts: Prompts, rollout: Rollout) -> dict[str, np.ndarray]:
    """Scores [B] of all host-side rewards, by name; waits for the rollout."""
    rows = (
        data.batch_prompts(run.dataset, prompts),
        response_texts(run.tokenizer, rollout),
        data.batch_columns(run.dataset, prompts),
    )
    scores: dict[str, np.ndarray] = {}
    for part in run.parts:
        if part.host is not None:
            scores |= base.host_scores(part, *rows)
    return scores


def memory_bytes(compiled: dict[str, jax.stages.Compiled]) -> int:
    """Device memory the largest program needs: arguments, outputs and scratch."""
    return largest_memory(compiled)["total"]


def largest_memory(compiled: dict[str, jax.stages.Compiled]) -> dict[str, int]:
    """Bytes of the program that needs most, by what they hold; aliased outputs count once."""
    parts = []
    for program in compiled.values():
        a = program.memory_analysis()
        held = {
            "arguments": a.argument_size_in_bytes,
            "outputs": a.output_size_in_bytes - a.alias_size_in_bytes,
            "temporaries": a.temp_size_in_bytes,
        }
        parts.append({"total": sum(held.values()), **held})
    return max(parts, key=lambda part: part["total"])


def compile_facts(stepper: Stepper) -> dict[str, float]:
    """How many programs were compiled, each once, and in how many seconds: for the log."""
    seconds = stepper.compile_seconds
    return {"compile/programs": len(seconds), "compile/seconds": sum(seconds.values())}
