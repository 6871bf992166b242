"""The iterations of a run: step k is dispatched before the metrics of k - 1 are read."""

import functools

import jax

from ppo_jax import book as books
from ppo_jax import console, faults
from ppo_jax.agreement import meet, on_first
from ppo_jax.baseline import Beginning
from ppo_jax.book import Book
from ppo_jax.errors import RewardError, StorageError
from ppo_jax.evaluate import make_evaluation
from ppo_jax.evaluation import EVAL_FAILED, is_judged
from ppo_jax.kind import Judge, Kind
from ppo_jax.metrics import read_metrics
from ppo_jax.prepare import Run
from ppo_jax.processes import is_writer
from ppo_jax.profile import profiled
from ppo_jax.programs import (
    Finished,
    Past,
    Stepper,
    compile_facts,
    memory_bytes,
    past_scores,
)
from ppo_jax.run_folder import RunFolder
from ppo_jax.samples import shown
from ppo_jax.types import PyTree, TrainState


def iterate(
    kind: Kind, run: Run, folder: RunFolder, state, frozen, saver, log, preemption, start: int
) -> None:
    """All iterations from `start`, with the fixed prompts continued before and after.

    Raises Preempted once the state has been saved, after a signal.
    """
    config = run.config.run
    shows = kind.generates and config.show_prompts > 0
    evaluate = make_evaluation(run.setup) if shows else None
    before = shown(run, evaluate, state, frozen)
    if before:
        console.show_samples("Before training" if start == 0 else "At the start", before)
    rows = read_metrics(folder.metrics) if is_writer() else []  # of a resumed run
    past = Past(*on_first("past scores", lambda: past_scores(run, rows)))
    stepper = kind.make_stepper(run, past)
    judge = None
    if run.held_out is not None and config.eval_every is not None:
        judge = kind.make_judge(run, Beginning(folder, start, state, frozen))
    with console.show_progress(config.iterations, start=start, bar=config.progress) as progress:
        book = books.open_book(run, folder, log, saver, preemption)
        book.progress = progress
        for row in rows:  # whose start still counts
            book.alarms.look(row["step"], row)
        preemption.begin("compilation and the first iteration")
        faults.point("compile")
        meet("loaded")
        # Compiled here, not within the first save.
        books.all_finite((state.params, state.opt_state))
        state = _iterations(kind, book, stepper, judge, state, frozen, start)
        books.wait_for(book, config.iterations)
    try:
        after = shown(run, evaluate, state, frozen)
    except RewardError as error:  # the run is complete, and saved
        console.warn(f"no continuations are shown: {error}")
        return
    if before:
        console.show_comparison(before, after)


def _iterations(
    kind: Kind,
    book: Book,
    stepper: Stepper,
    judge: Judge | None,
    state: TrainState,
    frozen: PyTree,
    start: int,
) -> TrainState:
    run, config, pending = book.run, book.run.config.run, None
    for step in range(start, config.iterations):
        if books.is_told_to_end(book):
            books.save_and_end(book, pending, step, state)
        batch = kind.make_batch(run, step)
        dispatch = stepper.dispatch
        if config.profile_after > 0 and step == start + config.profile_after:
            books.read_good(book, pending, None, step, state)
            pending, dispatch = None, functools.partial(_profiled, stepper)
        books.begin(book)
        try:
            state, finished = dispatch(state, frozen, step, batch)
        except (RewardError, StorageError):  # of a reward's process, which could not be started
            # The update has not begun: the state is that of `step` iterations.
            if pending is not None:
                books.read(book, pending)
            if step > start:
                books.save(book, step, state)
            raise
        faults.point("step")
        if step == start:
            finished = finished._replace(times=finished.times | compile_facts(stepper))
        books.read_good(book, pending, finished, step + 1, state)
        pending = finished
        if judge is not None and is_judged(config, step + 1):
            pending = _judged(book, judge, finished, state, frozen)
            if kind.note is not None:
                state = kind.note(run, state, pending.times)
        if books.is_due(book, step + 1):
            books.read_good(book, pending, None, step + 1, state)
            pending = None
            books.save(book, step + 1, state, must=step + 1 == config.iterations)
    return state


def _judged(
    book: Book, judge: Judge, done: Finished, state: TrainState, frozen: PyTree
) -> Finished:
    """The iteration with what is said of the state it has led to, for its line of the log."""
    jax.block_until_ready(done.metrics)  # its own time is not the evaluation's
    try:
        with books.evaluating(book, done.step + 1) as times:
            found = judge(state, frozen)
    except (RewardError, StorageError) as error:  # the state is sound
        done = done._replace(times=done.times | {EVAL_FAILED: 1.0})
        if done.step + 1 == book.run.config.run.iterations:  # it is the run's result
            console.warn(f"the last evaluation is lacking: {error}")
            return done
        books.read(book, done)
        books.save(book, done.step + 1, state)
        raise
    return done._replace(times=done.times | found | times)


def _profiled(stepper: Stepper, state, frozen, step: int, batch):
    """Dispatch one iteration and wait for it, with the seconds of its phases in `times`."""
    programs = [text for program in stepper.compiled.values() if (text := program.as_text())]
    (state, finished), seconds = profiled(
        lambda: stepper.dispatch(state, frozen, step, batch), programs
    )
    times = finished.times | seconds | {"memory/program_bytes": memory_bytes(stepper.compiled)}
    return state, finished._replace(times=times)
