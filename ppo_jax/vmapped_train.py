"""Runs that share a program, from the first iteration to the last: each with the folder, the log
and the checkpoints that it would have alone.

One whose loss or weights are no longer finite ends there; the others go on.
"""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import jax

from ppo_jax import book as books
from ppo_jax import checkpoint, console, freed_memory, vmapped
from ppo_jax.arguments import TrainArgs
from ppo_jax.book import Book
from ppo_jax.config import Config
from ppo_jax.errors import ConfigError, NumericalError
from ppo_jax.evaluation import is_judged
from ppo_jax.experiment import Experiment
from ppo_jax.kind import PPO
from ppo_jax.metrics import MetricsLog, read_metrics
from ppo_jax.opening import Begun, begin, describe
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Run
from ppo_jax.programs import Finished, compile_facts
from ppo_jax.report import leave_page
from ppo_jax.run_folder import write_status
from ppo_jax.run_header import header_facts
from ppo_jax.samples import fetch_logged
from ppo_jax.train import note_complete, open_log, resume
from ppo_jax.types import PyTree, TrainState
from ppo_jax.vmapped import Together


class Ready(NamedTuple):
    """A run with its weights on the devices."""

    begun: Begun
    run: Run
    state: TrainState
    frozen: PyTree
    start: int


def train_together(
    configs: Sequence[Config], experiment: Experiment, args: TrainArgs, preemption: Preemption
) -> dict[str, NumericalError]:
    """Train all of them to the end, each from its newest sound checkpoint; those that stand at one
    iteration share a program. Returns what has ended runs early, by their cell and seed.

    Raises one of `errors`' kinds; Preempted once what `preemption` has asked for is saved in all.
    """
    preemption.grace = configs[0].run.grace
    failed: dict[str, NumericalError] = {}
    at_once = not vmapped.in_turn()  # in turn, each is computed as it is alone
    with ExitStack() as stack:
        started = defaultdict(list)
        begun = [
            begin(
                stack,
                vmapped.config_of(config),
                experiment,
                args,
                preemption,
                PPO,
                together=at_once,
            )
            for config in configs
        ]
        _watch(preemption, [one.saver for one in begun])
        for one in begun:
            if one.start is not None and one.is_complete:
                note_complete(one.folder, one.start)
                continue
            ready = _prepare(one, args)
            started[ready.start].append(ready)
        freed_memory.give_back(caches=True)
        for ready in started.values():
            failed |= _train(stack, ready, experiment, preemption)
    for one in begun:
        if name_of(one.config) not in failed:
            write_status(one.folder, "done", one.config.run.iterations, saved=one.saver.durable)
            leave_page(one.folder.root)
    return failed


def name_of(config: Config) -> str:
    return f"{config.run.cell}/seed{config.run.seed}"


def _watch(preemption: Preemption, savers: Sequence[checkpoint.Saver]) -> None:
    """What is saved is what is saved of all."""

    def durable() -> int | None:
        steps = [saver.durable for saver in savers]
        return None if None in steps else min(step for step in steps if step is not None)

    def settle(seconds: float) -> None:
        for saver in savers:
            checkpoint.settle(saver, seconds)

    preemption.durable, preemption.settle = durable, settle


def _prepare(begun: Begun, args: TrainArgs) -> Ready:
    """ConfigError where the host has its part in an iteration, or in an evaluation: it cannot be in
    one program."""
    describe(begun.folder, begun.opened)
    run, state, frozen = PPO.prepare(begun.opened)
    asked = [*run.parts, *run.judge]
    host = "the environment" if run.host_env is not None else None
    host = next((part.name for part in asked if part.host is not None), host)
    if host is not None:
        why = "is ordinary Python, and is not part of the program"
        raise ConfigError(f"--vmap: {host} {why}; leave --vmap out")
    state, start = resume(begun, state, args)
    return Ready(begun, run, state, frozen, start)


def _train(
    stack: ExitStack, ready: list[Ready], experiment: Experiment, preemption: Preemption
) -> dict[str, NumericalError]:
    first = ready[0]
    facts = header_facts(first.run, first.begun.folder, experiment, first.state)
    facts |= {"runs": ", ".join(name_of(one.begun.config) for one in ready)}
    start, begun = first.start, [one.begun for one in ready]
    logs = [open_log(stack, one, start) for one in begun]
    together = vmapped.join(first.begun.opened, [(one.run, one.state, one.frozen) for one in ready])
    del first
    ready.clear()  # their arrays have been stacked
    facts["devices"] = f"{together.mesh.size}, which share {len(begun)} runs"
    console.show_header(facts)
    run = together.runs[0].config.run
    with console.show_progress(run.iterations, start=start, bar=run.progress) as progress:
        shelf = Shelf(together, begun, logs, preemption)
        shelf.iterate(start, progress)
    return shelf.failed


class Shelf:
    """The books of runs that share a program; `open` are those that go on, by their index."""

    def __init__(
        self,
        together: Together,
        begun: Sequence[Begun],
        logs: Sequence[MetricsLog],
        preemption: Preemption,
    ) -> None:
        self.together, self.preemption = together, preemption
        self.open: dict[int, Book] = {}
        self.failed: dict[str, NumericalError] = {}
        self._shown: list[dict] = []  # metrics of the iteration that is read
        for index, (one, log) in enumerate(zip(begun, logs, strict=True)):
            run = together.runs[index]
            book = books.open_book(run, one.folder, log, one.saver, preemption)
            book.name, book.share = name_of(run.config), len(begun)
            book.progress = lambda done, metrics: self._shown.append(dict(metrics))
            for row in read_metrics(one.folder.metrics):  # whose start still counts
                book.alarms.look(row["step"], row)
            self.open[index] = book

    def iterate(self, start: int, progress: console.Update) -> None:
        """All iterations from `start`; step k is dispatched before the metrics of k - 1 are read.

        Raises Preempted once all states have been saved, after a signal.
        """
        together, config = self.together, self.together.runs[0].config.run
        stepper = vmapped.make_stepper(together)
        judge = None
        if together.runs[0].held_out is not None and config.eval_every is not None:
            folders = [book.folder for book in self.open.values()]
            judge = vmapped.make_judge(together, folders, start)
        self.preemption.begin("compilation and the first iteration")
        states, frozen, pending = together.states, together.frozen, None
        self.together = together._replace(states=None, frozen=None)  # donated, from here on
        for step in range(start, config.iterations):
            if self.preemption.asked.is_set():
                self._read(pending, states, progress)
                self._save_and_end(step, states)
            for book in self.open.values():
                books.begin(book)
            batch = vmapped.make_batch(together, step)
            states, finished = stepper.dispatch(states, frozen, step, batch)
            if step == start:
                finished = finished._replace(times=compile_facts(stepper))
            self._read(pending, states, progress)
            pending, found = finished, {}
            if judge is not None and is_judged(config, step + 1):
                found = self._judged(judge, finished, states, frozen)
            if found or self._is_due(step + 1):
                self._read(pending, states, progress, found)
                pending = None
            if self._is_due(step + 1):
                self._save(step + 1, states, must=step + 1 == config.iterations)
            if not self.open:
                return
        for book in self.open.values():
            books.wait_for(book, config.iterations)

    def _is_due(self, step: int) -> bool:
        return any(books.is_due(book, step) for book in self.open.values())

    def _judged(self, judge, done: Finished, states, frozen: PyTree) -> dict[int, dict]:
        """What is said of the states that the iteration has led to, for its line of the logs."""
        jax.block_until_ready(done.metrics)  # its own time is not the evaluation's
        with ExitStack() as stack:
            step = done.step + 1
            times = {
                i: stack.enter_context(books.evaluating(b, step)) for i, b in self.open.items()
            }
            found = judge(states, frozen)
        return {index: found[index] | seconds for index, seconds in times.items()}

    def _read(
        self,
        done: Finished | None,
        states: TrainState,
        progress: console.Update,
        found: dict[int, dict] | None = None,
    ) -> None:
        """Wait for an iteration and log it in each run; `states` are those after the last one
        dispatched."""
        if done is None:
            return
        # One copy of all, of which each run's part is then a view: slices are costly on devices.
        done = fetch_logged(done)
        for index in list(self.open):
            own = done._replace(
                prompts=vmapped.run_of(done.prompts, index),
                metrics=vmapped.run_of(done.metrics, index),
                rollout=vmapped.run_of(done.rollout, index),
                scores_B=None if done.scores_B is None else done.scores_B[index],
                times=done.times | (found or {}).get(index, {}),
            )
            with self._alone(index):
                books.read(self.open[index], own)
        if self._shown:
            names = set.intersection(*(set(each) for each in self._shown))
            progress(
                done.step + 1,
                {name: statistics.fmean(each[name] for each in self._shown) for name in names},
            )
            self._shown.clear()

    def _save(self, step: int, states: TrainState, *, must: bool) -> None:
        for index in list(self.open):
            with self._alone(index):
                books.save(self.open[index], step, vmapped.run_of(states, index), must=must)

    def _save_and_end(self, step: int, states: TrainState) -> None:
        """What a signal asks for."""
        self._save(step, states, must=True)
        for book in self.open.values():
            books.wait_for(book, step)
        raise self.preemption.saved(step)

    @contextlib.contextmanager
    def _alone(self, index: int):
        """A run that is no longer finite ends, without the others."""
        try:
            yield
        except NumericalError as error:
            book = self.open.pop(index)
            self.failed[book.name] = error
            console.warn(f"{book.name}: {error}")
            said = f"{type(error).__name__}: {error}"
            done = sum(1 for _ in read_metrics(book.folder.metrics))
            write_status(book.folder, "failed", done, saved=book.saver.durable, error=said)
