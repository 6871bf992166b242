"""What is kept of a run while it goes: each iteration read and logged, each save begun and said."""

import contextlib
import dataclasses
import difflib
import functools
import math
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from ppo_jax import checkpoint, console, processes
from ppo_jax.agreement import Votes, on_first
from ppo_jax.alarms import Alarms
from ppo_jax.errors import ConfigError, NumericalError, StorageError
from ppo_jax.evaluation import DIVERSITY, EVAL, EVAL_SECONDS, best_is_judged, is_judged
from ppo_jax.metrics import MetricsLog, throughput, to_host
from ppo_jax.offload import fetched
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Run
from ppo_jax.profile import peak_memory_bytes
from ppo_jax.programs import Finished
from ppo_jax.run_folder import RunFolder, write_status
from ppo_jax.samples import sample_rows
from ppo_jax.types import PyTree, TrainState

SETTLE_SECONDS = 600.0  # for a save under way to end


@dataclasses.dataclass
class Book:
    """A run's log, its checkpoints, and what they said last."""

    run: Run
    folder: RunFolder
    log: MetricsLog
    saver: checkpoint.Saver
    preemption: Preemption
    alarms: Alarms
    votes: Votes
    clock: float  # when the last iteration was read
    saved: float  # when the last save began
    progress: console.Update = lambda done, metrics: None
    name: str = ""  # of the run, before its warnings, where several share the screen
    share: int = 1  # runs that share an iteration's seconds
    best_of: list[float] = dataclasses.field(default_factory=list)  # run.keep_best since then
    best_seen: bool = False  # that there is such a metric
    times: dict[str, float] = dataclasses.field(default_factory=dict)  # for the next line
    ahead: float = math.inf  # seconds until a signal is looked at and what it asks for is saved
    judging: float = math.inf  # that the last evaluation took
    failed: int = 0  # saves
    said: int | None = None  # step that `status.json` names as saved


def open_book(
    run: Run,
    folder: RunFolder,
    log: MetricsLog,
    saver: checkpoint.Saver,
    preemption: Preemption,
) -> Book:
    now = time.monotonic()
    rest = (run, folder, log, saver, preemption, Alarms(run.config), Votes())
    return Book(*rest, clock=now, saved=now, said=saver.durable)


def is_told_to_end(book: Book) -> bool:
    """Whether a signal has come; with several processes, as soon as all know of it."""
    return book.votes.end if processes.count() > 1 else book.preemption.asked.is_set()


def is_due(book: Book, step: int) -> bool:
    """Whether the state after `step` iterations is to be saved."""
    config = book.run.config.run
    if step % config.checkpoint_every == 0 or step == config.iterations:
        return True
    if best_is_judged(config) and is_judged(config, step):  # which tells of this state alone
        return True
    return book.votes.save if processes.count() > 1 else _is_late(book)


@contextlib.contextmanager
def evaluating(book: Book, step: int) -> Iterator[dict[str, float]]:
    """An evaluation of the state after `step` iterations; gives a dict that has its seconds at the
    end. They are not the iteration's."""
    clock, times = time.monotonic(), {}
    book.preemption.begin(f"evaluation after iteration {step}", book.ahead + book.judging)
    yield times
    book.judging = times[EVAL_SECONDS] = time.monotonic() - clock
    book.clock += book.judging
    book.preemption.begin(f"iteration {step + 1}", book.ahead)


def begin(book: Book) -> None:
    """An iteration begins: what this process has to say to the others goes with it."""
    # The clocks of several processes would disagree.
    book.votes.cast(book.preemption.asked.is_set(), processes.is_writer() and _is_late(book))


def _is_late(book: Book) -> bool:
    minutes = book.run.config.run.checkpoint_minutes
    return minutes is not None and time.monotonic() - book.saved > 60 * minutes


def read_good(
    book: Book, done: Finished | None, after: Finished | None, step: int, state: TrainState
) -> None:
    """`read`; where too many updates were not finite, the state of `step` iterations, to which
    none of them was applied, is saved before the run ends. `after` is what has begun since."""
    try:
        if done is not None:
            read(book, done)
    except NumericalError as error:
        with contextlib.suppress(NumericalError):
            if after is not None:
                read(book, after)
        with contextlib.suppress(NumericalError):  # a weight is not finite: this one is not saved
            save(book, step, state)
            _attempt(book, lambda: checkpoint.wait(book.saver))
        raise NumericalError(f"{error}; {_on_disk(book.saver)}") from None


def read(book: Book, done: Finished) -> None:
    """Wait for an iteration and log it; stop on too many skipped updates."""
    config = book.run.config
    _attempt(book, lambda: checkpoint.check(book.saver))
    _say_saved(book, done.step)
    metrics = to_host(done.metrics)
    book.votes.count()
    now = time.monotonic()
    seconds, book.clock = now - book.clock, now
    metrics |= done.times | book.times | {"time/iteration": seconds / book.share}
    book.times = {}
    metrics["memory/peak_bytes"] = peak_memory_bytes()
    metrics["eps"] = config.rollout.batch_size / max(metrics["time/iteration"], 1e-9)
    metrics |= throughput(metrics, config.rollout.batch_size)
    if book.failed:
        metrics["ckpt/failed"] = book.failed
    if processes.is_writer():
        count = config.run.samples if done.rollout is not None else 0
        samples = sample_rows(book.run, done, count) if count else []
        _log(book, functools.partial(book.log.write, done.step, metrics))
        _log(book, functools.partial(book.log.write_samples, done.step, samples))
        book.progress(done.step + 1, metrics)
        for line in (*_unscored(book.run, done), *book.alarms.look(done.step, metrics)):
            _warn(book, line)
    _note_best(book, metrics)
    # Two are under way at most, and the save waits for both; a third where the others are to know.
    ordinary = seconds - metrics.get("compile/seconds", 0.0)
    under_way = 2 if processes.count() == 1 else 3
    book.ahead = under_way * ordinary + book.saver.seconds
    book.preemption.begin(f"iteration {done.step + 1}", book.ahead)
    in_row = metrics["update/nonfinite_in_row"]
    if in_row >= config.optim.max_nonfinite:
        raise NumericalError(
            f"iteration {done.step}: {in_row:.0f} iterations in a row had a step with a loss or "
            f"gradient that is not finite; it was not applied (optim.max_nonfinite="
            f"{config.optim.max_nonfinite}); {console.iteration_line(metrics)}"
        )


def _say_saved(book: Book, step: int) -> None:
    """What is on the disk, in `status.json`: a folder that lacks it later has lost it."""
    if book.saver.durable != book.said:
        book.said = book.saver.durable
        with contextlib.suppress(StorageError):  # a save tells, if there is no room
            write_status(book.folder, "running", step, saved=book.said)


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


def save(book: Book, step: int, state: TrainState, *, must: bool = False) -> None:
    """Start a save. One that fails is said and counted, and the run goes on; unless this one cannot
    start and `must`."""
    clock = book.saved = time.monotonic()
    book.votes.save = False
    _check_finite(book, step, state)
    _attempt(book, lambda: checkpoint.wait(book.saver))  # for the one before
    start = functools.partial(_start_save, book, step, state)
    start() if must else _attempt(book, start)
    book.times |= {"time/save": time.monotonic() - clock}
    if book.saver.seconds > 0:
        book.times |= {"time/save_durable": book.saver.seconds}


def _start_save(book: Book, step: int, state: TrainState) -> None:
    """A checkpoint, and before it the log up to it: a step that is there has its lines."""
    on_first("log", book.log.sync)
    name, mean = book.run.config.run.keep_best, _mean(book.best_of)
    book.best_of = []
    goodness = None if name is None or mean is None else (name, mean)
    checkpoint.save(book.saver, step, state, goodness=goodness)


def _attempt(book: Book, act: Callable[[], None]) -> None:
    """What may fail without harm to the run, which then says so and counts it."""
    try:
        act()
    except checkpoint.TornError:  # the processes are no longer at the same place
        raise
    except StorageError as error:
        book.failed += 1
        _warn(book, f"{error}; the run goes on, {_on_disk(book.saver)}")


def _warn(book: Book, line: str) -> None:
    console.warn(f"{book.name}: {line}" if book.name else line)


def save_and_end(book: Book, pending: Finished | None, step: int, state: TrainState) -> None:
    """What a signal asks for, with the state after `step` iterations."""
    read_good(book, pending, None, step, state)
    save(book, step, state, must=True)
    wait_for(book, step)
    raise book.preemption.saved(step)


def wait_for(book: Book, step: int) -> None:
    """Until that step, whose save is under way, is on the disk; StorageError if it is not."""
    try:
        checkpoint.wait(book.saver)
    except StorageError as error:
        if book.saver.durable != step:
            raise
        _warn(book, str(error))  # of an older checkpoint


def _check_finite(book: Book, step: int, state: TrainState) -> None:
    """NumericalError, instead of a checkpoint, where a weight or a moment is not finite."""
    if bool(all_finite((state.params, state.opt_state))):
        return
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in leaves
        if not bool(all_finite(leaf))
    ]
    raise NumericalError(
        f"iteration {step - 1}: not finite after its update: {names[0] if names else 'Adam'}; that "
        f"state was not saved, {_on_disk(book.saver)}; lower hparams.learning_rate"
    )


@jax.jit
def all_finite(tree: PyTree):
    leaves = jax.tree.leaves(fetched(tree))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def _on_disk(saver: checkpoint.Saver) -> str:
    return "no step is saved" if saver.durable is None else f"step {saver.durable} is saved"


def _note_best(book: Book, metrics: dict[str, float]) -> None:
    """Keep what `run.keep_best` names, turned so that higher is better."""
    asked = book.run.config.run.keep_best
    if asked is None:
        return
    name = asked.removeprefix("-")
    later = book.best_seen or (name.startswith(EVAL) and EVAL_SECONDS not in metrics)
    later = later or name in DIVERSITY  # which responses of this evaluation need not have
    if name not in metrics and later:  # not one of every iteration
        return
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=1, cutoff=0.0)[0]
        raise ConfigError(f"run.keep_best={asked}: no metric of this run; nearest valid: {near}")
    book.best_seen = True
    book.best_of.append(-metrics[name] if asked.startswith("-") else metrics[name])


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
