"""The iterations of a run: step k is dispatched before the metrics of k - 1 are read."""

import contextlib
import dataclasses
import difflib
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppo_jax import checkpoint, console, data, faults
from ppo_jax.alarms import Alarms
from ppo_jax.errors import ConfigError, NumericalError, RewardError, StorageError
from ppo_jax.evaluate import make_evaluation
from ppo_jax.metrics import MetricsLog, read_metrics, throughput, to_host
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Run
from ppo_jax.profile import peak_memory_bytes, profiled
from ppo_jax.programs import Finished, Stepper, compile_facts, make_stepper, memory_bytes
from ppo_jax.run_folder import RunFolder, write_status
from ppo_jax.samples import sample_rows, shown
from ppo_jax.types import PyTree, TrainState

SETTLE_SECONDS = 600.0  # for a save under way to end


@dataclasses.dataclass
class Book:
    """What is kept of a run while it goes: its log, its checkpoints, what they said last."""

    run: Run
    folder: RunFolder
    log: MetricsLog
    saver: checkpoint.Saver
    preemption: Preemption
    progress: console.Update
    alarms: Alarms
    clock: float  # when the last iteration was read
    saved: float  # when the last save began
    best_of: list[float] = dataclasses.field(default_factory=list)  # run.keep_best since then
    best_seen: bool = False  # that there is such a metric
    times: dict[str, float] = dataclasses.field(default_factory=dict)  # for the next line
    failed: int = 0  # saves


def iterate(run: Run, folder: RunFolder, state, frozen, saver, log, preemption, start: int) -> None:
    """All iterations from `start`, with the fixed prompts continued before and after.

    Raises Preempted once the state has been saved, after a signal.
    """
    config = run.config.run
    evaluate = make_evaluation(run.setup) if config.show_prompts > 0 else None
    before = shown(run, evaluate, state, frozen)
    if before:
        console.show_samples("Before training" if start == 0 else "At the start", before)
    stepper = make_stepper(run)
    with console.show_progress(config.iterations, start=start, bar=config.progress) as progress:
        now = time.monotonic()
        book = Book(
            run, folder, log, saver, preemption, progress, Alarms(run.config), clock=now, saved=now
        )
        for row in read_metrics(folder.metrics):  # of a resumed run, whose start still counts
            book.alarms.look(row["step"], row)
        preemption.begin("compilation and the first iteration")
        faults.point("compile")
        _all_finite((state.params, state.opt_state))  # compiled here, not within the first save
        state = _iterations(book, stepper, state, frozen, start)
        checkpoint.wait(saver)
    if before:
        try:
            console.show_comparison(before, shown(run, evaluate, state, frozen))
        except RewardError as error:  # the run is complete, and saved
            console.warn(f"no continuations are shown: {error}")


def _iterations(book: Book, stepper: Stepper, state: TrainState, frozen: PyTree, start: int):
    run, config, pending = book.run, book.run.config.run, None
    for step in range(start, config.iterations):
        if book.preemption.asked.is_set():
            _save_and_end(book, pending, step, state)
        prompts = data.make_batch(run.dataset, run.config, step, pad_id=run.pad_id, width=run.width)
        dispatch = stepper.dispatch
        if config.profile_after > 0 and step == start + config.profile_after:
            _read_good(book, pending, None, step, state)
            pending, dispatch = None, functools.partial(_profiled, stepper)
        try:
            state, finished = dispatch(state, frozen, step, prompts)
        except RewardError:  # the update has not begun: the state is that of `step` iterations
            if pending is not None:
                _read(book, pending)
            if step > start:
                _save(book, step, state)
            raise
        faults.point("step")
        if step == start:
            finished = finished._replace(times=finished.times | compile_facts(stepper))
        _read_good(book, pending, finished, step + 1, state)
        pending = finished
        if _is_due(book, step + 1):
            _read_good(book, pending, None, step + 1, state)
            pending = None
            _save(book, step + 1, state, must=step + 1 == config.iterations)
    return state


def _read_good(
    book: Book, done: Finished | None, after: Finished | None, step: int, state: TrainState
) -> None:
    """`_read`; where too many updates were not finite, the state of `step` iterations, to which
    none of them was applied, is saved before the run ends. `after` is what has begun since."""
    try:
        if done is not None:
            _read(book, done)
    except NumericalError as error:
        with contextlib.suppress(NumericalError):
            if after is not None:
                _read(book, after)
        with contextlib.suppress(NumericalError):  # a weight is not finite: this one is not saved
            _save(book, step, state)
            _attempt(book, lambda: checkpoint.wait(book.saver))
        raise NumericalError(f"{error}; {_on_disk(book.saver)}") from None


def _profiled(stepper: Stepper, state, frozen, step: int, prompts):
    """Dispatch one iteration and wait for it, with the seconds of its phases in `times`."""
    programs = [text for program in stepper.compiled.values() if (text := program.as_text())]
    (state, finished), seconds = profiled(
        lambda: stepper.dispatch(state, frozen, step, prompts), programs
    )
    times = finished.times | seconds | {"memory/program_bytes": memory_bytes(stepper.compiled)}
    return state, finished._replace(times=times)


def _read(book: Book, done: Finished) -> None:
    """Wait for an iteration and log it; stop on too many skipped updates."""
    config = book.run.config
    _attempt(book, lambda: checkpoint.check(book.saver))
    metrics = to_host(done.metrics)
    now = time.monotonic()
    seconds, book.clock = now - book.clock, now
    metrics |= done.times | book.times | {"time/iteration": seconds}
    book.times = {}
    metrics["memory/peak_bytes"] = peak_memory_bytes()
    metrics["eps"] = config.rollout.batch_size / max(seconds, 1e-9)
    metrics |= throughput(metrics, config.rollout.batch_size)
    if book.failed:
        metrics["ckpt/failed"] = book.failed
    samples = sample_rows(book.run, done)[: config.run.samples]
    _log(book, functools.partial(book.log.write, done.step, metrics))
    _log(book, functools.partial(book.log.write_samples, done.step, samples))
    book.progress(done.step + 1, metrics)
    for line in (*_unscored(book.run, done), *book.alarms.look(done.step, metrics)):
        console.warn(line)
    _note_best(book, metrics)
    # Two are under way at most, and the save waits for both.
    ordinary = seconds - metrics.get("compile/seconds", 0.0)
    book.preemption.begin(f"iteration {done.step + 1}", 2 * ordinary + book.saver.seconds)
    in_row = metrics["update/nonfinite_in_row"]
    if in_row >= config.optim.max_nonfinite:
        raise NumericalError(
            f"iteration {done.step}: {in_row:.0f} iterations in a row had a step with a loss or "
            f"gradient that is not finite; it was not applied (optim.max_nonfinite="
            f"{config.optim.max_nonfinite}); "
            f"score {metrics['objective/scores']:.4g}, KL {metrics['objective/kl']:.4g}"
        )


def _log(book: Book, write: Callable[[], None]) -> None:
    """Write lines; once more after a save under way, which may have filled the disk: it fails then,
    and gives back what it took."""
    try:
        write()
    except StorageError:
        if book.saver.finishing is None:
            raise
        checkpoint.settle(book.saver, SETTLE_SECONDS)
        write()


def _unscored(run: Run, done: Finished) -> list[str]:
    """A line on the rows of a batch that a host reward gave no score."""
    if not done.failed:
        return []
    row, why = next(iter(sorted(done.failed.items())))
    count, size = len(done.failed), run.config.rollout.batch_size
    return [
        f"iteration {done.step}: {count} of {size} rows have no score and give no gradient; "
        f"row {row}: {why}"
    ]


def _is_due(book: Book, step: int) -> bool:
    """Whether the state after `step` iterations is to be saved."""
    config = book.run.config.run
    if step % config.checkpoint_every == 0 or step == config.iterations:
        return True
    # Clocks of several processes would disagree, and a save needs them all.
    if config.checkpoint_minutes is None or jax.process_count() > 1:
        return False
    return time.monotonic() - book.saved > 60 * config.checkpoint_minutes


def _save(book: Book, step: int, state: TrainState, *, must: bool = False) -> None:
    """Start a save. One that fails is said and counted, and the run goes on; unless this one cannot
    start and `must`."""
    clock = book.saved = time.monotonic()
    _check_finite(book, step, state)
    _attempt(book, lambda: checkpoint.wait(book.saver))  # for the one before
    start = functools.partial(_start_save, book, step, state)
    start() if must else _attempt(book, start)
    book.times |= {"time/save": time.monotonic() - clock}
    if book.saver.seconds > 0:
        book.times |= {"time/save_durable": book.saver.seconds}


def _start_save(book: Book, step: int, state: TrainState) -> None:
    """A checkpoint, and before it the log up to it: a step that is there has its lines."""
    book.log.sync()
    name, mean = book.run.config.run.keep_best, _mean(book.best_of)
    book.best_of = []
    goodness = None if name is None or mean is None else (name, mean)
    checkpoint.save(book.saver, step, state, goodness=goodness)
    with contextlib.suppress(StorageError):  # the save tells, if there is no room
        write_status(book.folder, "running", step, saved=book.saver.durable)


def _attempt(book: Book, act: Callable[[], None]) -> None:
    """What may fail without harm to the run, which then says so and counts it."""
    try:
        act()
    except StorageError as error:
        book.failed += 1
        console.warn(f"{error}; the run goes on, {_on_disk(book.saver)}")


def _save_and_end(book: Book, pending: Finished | None, step: int, state: TrainState) -> None:
    """What a signal asks for, with the state after `step` iterations."""
    _read_good(book, pending, None, step, state)
    _save(book, step, state, must=True)
    checkpoint.wait(book.saver)
    raise book.preemption.saved(step)


def _check_finite(book: Book, step: int, state: TrainState) -> None:
    """NumericalError, instead of a checkpoint, where a weight or a moment is not finite."""
    if bool(_all_finite((state.params, state.opt_state))):
        return
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in leaves
        if not bool(_all_finite(leaf))
    ]
    raise NumericalError(
        f"iteration {step - 1}: not finite after its update: {names[0] if names else 'Adam'}; that "
        f"state was not saved, {_on_disk(book.saver)}; lower hparams.learning_rate"
    )


@jax.jit
def _all_finite(tree: PyTree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def _on_disk(saver: checkpoint.Saver) -> str:
    return "no step is saved" if saver.durable is None else f"step {saver.durable} is saved"


def _note_best(book: Book, metrics: dict[str, float]) -> None:
    """Keep what `run.keep_best` names, turned so that higher is better."""
    asked = book.run.config.run.keep_best
    if asked is None:
        return
    name = asked.removeprefix("-")
    if name not in metrics and book.best_seen:  # not one of every iteration
        return
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=1, cutoff=0.0)[0]
        raise ConfigError(f"run.keep_best={asked}: no metric of this run; nearest valid: {near}")
    book.best_seen = True
    book.best_of.append(-metrics[name] if asked.startswith("-") else metrics[name])


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
