"""The compiled programs of an iteration, and the function that dispatches one.

One program; or, with rewards or an environment that are ordinary Python, three with the host
between them. With several processes each of them calls the rewards, and asks the environment, for
the rows that lie on its own devices.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import data, faults
from ppo_jax.agreement import together
from ppo_jax.compiled import KEEP, Built, program
from ppo_jax.config import ParallelOptions
from ppo_jax.errors import ConfigError, RewardError
from ppo_jax.evaluate import response_texts
from ppo_jax.host_turns import make_host_sampler
from ppo_jax.prepare import Run
from ppo_jax.rewards.base import Part
from ppo_jax.rewards.host import SEEDS, HostScores, Rows, call
from ppo_jax.sharding import (
    batch_sharding,
    fetch_own_rows,
    make_mesh,
    own_rows,
    put_batch,
    put_own_rows,
    replicated,
)
from ppo_jax.step import device_scores, learn, sample_rollout, score_rollout, train_step
from ppo_jax.types import Prompts, PyTree, Rollout, TrainState

REWARD = "reward/"  # before the name of a score, in the log
FAILED = "reward/failed"  # rows that a host reward gave no score; reward/masked: any reward
MAX_EMPTY = 3  # batches in a row without any score, after which the reward is taken for broken

Scores = dict[str, np.ndarray]  # by name, float32, of the rows of this process
Failed = dict[int, str]  # row of the batch -> why it has no score


class Finished(NamedTuple):
    """An iteration that has been dispatched; its arrays may still be on their way."""

    step: int
    prompts: Prompts  # on the host
    metrics: dict[str, jax.Array]
    rollout: Rollout | None  # None: nothing was sampled
    scores_B: jax.Array | None
    times: dict[str, float]  # seconds
    failed: Failed = {}  # by a host reward


class Stepper(NamedTuple):
    """`dispatch(state, frozen, step, prompts) -> (state, Finished)`, and what it has compiled."""

    dispatch: Callable[[TrainState, PyTree, int, Prompts], tuple[TrainState, Finished]]
    compiled: dict[str, jax.stages.Compiled]  # by program name, filled by the first dispatch
    compile_seconds: dict[str, float]  # by program name: tracing, lowering and compilation


class Past(NamedTuple):
    """What a resumed run has to know of its host scores before."""

    names: list[str] = []
    empty: int = 0  # batches in a row without any score, up to the start


FRESH = Past()


def make_stepper(run: Run, past: Past = FRESH) -> Stepper:
    built = Built({}, {})
    return Stepper(_cut(run, built, past) if run.is_cut else _fused(run, built), *built)


def past_scores(run: Run, rows: Sequence[Mapping[str, Any]]) -> Past:
    """Of the logged iterations of a run."""
    if not rows:
        return FRESH
    names, empty = [], 0
    for part in run.parts:
        if part.host is not None:
            start = f"{REWARD}{part.name}/"
            keys = [name.removeprefix(REWARD) for name in rows[-1] if name.startswith(start)]
            names += keys or [part.name]
    for row in rows:
        empty = empty + 1 if row.get(FAILED) == run.config.rollout.batch_size else 0
    return Past(names, empty)


def _fused(run: Run, built: Built):
    mesh = run.setup.mesh
    whole, rows = replicated(mesh), batch_sharding(mesh)
    on = lambda function: functools.partial(function, run.setup)
    step_program = program(
        built, "train_step", on(train_step), (KEEP, whole, rows, rows), donate=True
    )

    def dispatch(state, frozen, step: int, prompts: Prompts):
        on_device = put_batch(mesh, prompts)
        state, metrics, rollout, scores_B = step_program(state, frozen, run.hparams, on_device)
        return state, Finished(step, prompts, metrics, rollout, scores_B, {})

    return dispatch


def _cut(run: Run, built: Built, past: Past):
    mesh = run.setup.mesh
    whole, rows = replicated(mesh), batch_sharding(mesh)
    on = lambda function: functools.partial(function, run.setup)
    sample = _sampler(run, built)
    score = program(built, "score", on(_score), rows)
    update = program(built, "update", on(learn), (KEEP, whole, rows, rows), donate=True)
    names: list[str] = []  # of the host scores, as the first batch had them
    empty = past.empty

    def dispatch(state, frozen, step: int, prompts: Prompts):
        nonlocal empty
        on_device = put_batch(mesh, prompts)
        rollout = sample(state, frozen, step, prompts, on_device)
        # Dispatched at once, so that the scoring passes overlap the reward on the host.
        scored, raw = score(state, frozen, run.hparams, rollout, on_device.columns)
        faults.point("reward")
        clock = time.monotonic()
        scores, failed = host_scores(run, prompts, rollout, step)
        size = len(prompts.prompt_index_B)
        if not names and len(failed) == size:
            names.extend(past.names)
        scores = _under_known_names(names, scores, failed, size)
        empty = empty + 1 if len(failed) == size else 0
        if empty >= MAX_EMPTY:
            why = next(iter(failed.values()))
            raise RewardError(f"{empty} batches in a row in which no row has a score: {why}")
        raw = raw | put_own_rows(mesh, size, scores)
        times = {"time/reward": time.monotonic() - clock}
        state, metrics, rollout, scores_B = update(state, frozen, run.hparams, rollout, scored, raw)
        if run.config.reward.on_error == "mask":
            metrics[FAILED] = np.float32(len(failed))
        return state, Finished(step, prompts, metrics, rollout, scores_B, times, failed)

    return dispatch


def _sampler(run: Run, built: Built):
    """`sample(state, frozen, step, prompts, prompts on the devices) -> Rollout`: in one program, or
    turn by turn with an environment in Python."""
    if run.host_env is not None:
        talk = make_host_sampler(run, run.host_env, built)
        return lambda state, frozen, step, prompts, _: talk(state, frozen, step, prompts)
    sample = functools.partial(sample_rollout, run.setup)
    sample = program(built, "sample", sample, batch_sharding(run.setup.mesh))
    return lambda state, frozen, _, __, prompts: sample(state, frozen, run.hparams, prompts)


def _under_known_names(names: list[str], scores: Scores, failed: Failed, size: int) -> Scores:
    """The scores under the names that the first batch had, which are part of the program."""
    nothing = len(failed) == size
    if not names and nothing:
        raise RewardError(f"no row of the first batch has a score: {next(iter(failed.values()))}")
    if not names:
        names.extend(scores)
    if nothing:  # whose names are not known where a reward gave nothing at all
        lacking = np.full_like(next(iter(scores.values())), np.nan)
        scores = dict.fromkeys(names, lacking)
    if set(names) != set(scores):
        raise RewardError(
            f"reward: returned the scores {sorted(scores)}, in the first batch {sorted(names)}; "
            "expected the same names in every batch"
        )
    return scores


def _score(setup, state, frozen, hparams, rollout, columns):
    scored = score_rollout(setup, state, frozen, hparams, rollout)
    return scored, device_scores(setup, frozen, rollout, columns)


def host_scores(run: Run, prompts: Prompts, rollout: Rollout, step: int) -> tuple[Scores, Failed]:
    """Scores of all host-side rewards, by name, of the rows that this process has; and of the whole
    batch the rows that lack one. Waits for the rollout.

    RewardError if there is a row that lacks one and the config says to abort; all processes raise
    it.
    """
    mesh = run.setup.mesh
    ids_BT, lengths_B = fetch_own_rows(mesh, (rollout.response_ids_BT, rollout.lengths_B))
    own = own_rows(mesh, len(prompts.prompt_index_B))
    mine = jax.tree.map(lambda x: np.asarray(x)[own], prompts)
    found: dict[str, HostScores] = {}

    def call_all() -> dict[str, list]:
        texts = response_texts(run.tokenizer, ids_BT, lengths_B)
        found.update(call_rewards(run, mine, own.tolist(), texts, step))
        return {part: [list(x.scores), list(x.failed.items())] for part, x in found.items()}

    said = together("rewards", call_all)
    scores, failed = {}, {}
    for part, here in found.items():
        known = {tuple(sorted(names)): names for names, _ in (x[part] for x in said) if names}
        if len(known) > 1:
            raise RewardError(
                f"reward {part}: returned the scores {' and '.join(map(str, known))} for some rows "
                "and others; expected the same names for every row"
            )
        nothing = np.full(len(own), np.nan, np.float32)
        for name in next(iter(known.values()), [part]):
            scores[name] = here.scores.get(name, nothing)
        failed |= {row: why for x in said for row, why in x[part][1]}
    return scores, failed


def check_own_rows(parallel: ParallelOptions, parts: list[Part], devices: list) -> None:
    """ConfigError where rows of a host-side reward lie on devices of several processes."""

    def shared(tensor: int) -> bool:
        data = parallel.data if tensor == parallel.tensor or parallel.fsdp == -1 else -1
        mesh = make_mesh(dataclasses.replace(parallel, tensor=tensor, data=data), devices)
        owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
        return bool((owners != owners[..., :1]).any())

    if all(part.host is None for part in parts) or not shared(parallel.tensor):
        return
    tensor = parallel.sizes(len(devices))[2]
    # Which chips stand side by side in the mesh is the platform's to say: other sizes are tried.
    near = next(n for n in range(tensor - 1, 0, -1) if tensor % n == 0 and not shared(n))
    raise ConfigError(
        f"parallel.tensor={tensor}: a reward in Python is called by the process that has the row, "
        f"and here several share one; nearest valid: {near}"
    )


def call_rewards(
    run: Run, prompts: Prompts, numbers: list[int], texts: list[str], step: int
) -> dict[str, HostScores]:
    """What each host-side reward gives, by its name, for these rows of the batch."""
    seeds = _row_seeds(run.config.run.seed, step, prompts)
    columns = {SEEDS: seeds} | data.batch_columns(run.dataset, prompts)
    rows = Rows(numbers, data.batch_prompts(run.dataset, prompts), texts, columns)
    here = lambda part, rows, seed: call(part, rows, on_error=run.config.reward.on_error)
    parts = [part for part in run.parts if part.host is not None]
    return {part.name: (run.call_host or here)(part, rows, seeds[0]) for part in parts}


def _row_seeds(seed: int, step: int, prompts: Prompts) -> list[int]:
    """A seed a row for rewards that draw at random, the same in every run of this seed."""
    rows = zip(prompts.prompt_index_B.tolist(), prompts.sample_index_B.tolist(), strict=True)
    draw = lambda *row: int(np.random.SeedSequence([seed, step, *row]).generate_state(1)[0])
    return [draw(*row) for row in rows]


def memory_bytes(compiled: dict[str, jax.stages.Compiled]) -> int:
    """Device memory the largest program needs: arguments, outputs and scratch."""
    return largest_memory(compiled)["total"]


def largest_memory(compiled: dict[str, jax.stages.Compiled]) -> dict[str, int]:
    """Bytes of the program that needs most, by what they hold; aliased outputs count once."""
    parts = []
    for one in compiled.values():
        a = one.memory_analysis()
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
