"""The training run: open and check everything, go on from where it stands, close it in any case."""

import contextlib
import functools
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import jax

from ppo_jax import checkpoint, console, freed_memory, processes, removal, storage
from ppo_jax.agreement import exchange, on_first
from ppo_jax.arguments import TrainArgs
from ppo_jax.config import Config
from ppo_jax.errors import DataError, PPOJaxError, Preempted, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.kind import PPO, Kind
from ppo_jax.loop import iterate
from ppo_jax.metrics import MetricsLog, open_metrics, read_metrics
from ppo_jax.opening import Begun, begin, describe
from ppo_jax.preemption import Preemption
from ppo_jax.prepare import Opened
from ppo_jax.processes import is_writer
from ppo_jax.restore import Unreadable, abstract_like, restore
from ppo_jax.resume import find_start
from ppo_jax.rewards.pool import open_pool
from ppo_jax.run_folder import (
    RunFolder,
    read_status,
    reconcile,
    write_status,
)
from ppo_jax.run_header import header_facts
from ppo_jax.trackers import open_trackers
from ppo_jax.types import TrainState


def train(
    config: Config,
    experiment: Experiment,
    args: TrainArgs | None = None,
    preemption: Preemption | None = None,
    kind: Kind = PPO,
) -> None:
    """Train to the end, or go on from the run folder's newest sound checkpoint.

    Raises one of `errors`' kinds; Preempted once what `preemption` has asked for is saved.
    """
    began, args = time.monotonic(), args or TrainArgs()
    preemption = preemption or Preemption()
    preemption.grace = config.run.grace
    with ExitStack() as stack:
        begun = begin(stack, config, experiment, args, preemption, kind)
        config, folder, saver, start = begun.config, begun.folder, begun.saver, begun.start
        if start is not None and begun.is_complete:
            note_complete(folder, start)
            return
        call_host = _host_rewards(stack, experiment, folder, begun.opened)
        describe(folder, begun.opened)
        run, state, frozen = kind.prepare(begun.opened)
        run = run._replace(call_host=call_host)
        freed_memory.give_back(caches=True)
        console.show_header(header_facts(run, folder, experiment, state))
        state, start = resume(begun, state, args)
        log = open_log(stack, begun, start)
        iterate(kind, run, folder, state, frozen, saver, log, preemption, start)
    write_status(folder, "done", config.run.iterations, saved=saver.durable)
    if is_writer():
        console.show_summary(read_metrics(folder.metrics), time.monotonic() - began, folder.root)


def open_log(stack: ExitStack, begun: Begun, start: int) -> MetricsLog:
    """The log of a run that goes on from `start`; `stack` closes it. From here on `status.json`
    says that it is running, and what has ended it."""
    reconcile(begun.folder, start)
    trackers = stack.enter_context(open_trackers(begun.config.run, begun.folder))
    log = stack.enter_context(open_metrics(begun.folder, trackers))
    write_status(begun.folder, "running", start, saved=begun.saver.durable)
    stack.enter_context(_said_in_status(begun.folder, log, begun.saver))
    return log


@contextlib.contextmanager
def _said_in_status(folder: RunFolder, log: MetricsLog, saver: checkpoint.Saver):
    """An error on its way out leaves its name in `status.json`; so does the end of another process,
    which ends this one."""
    lost, saying = threading.Event(), threading.Lock()

    def say(error: BaseException) -> None:
        status = "preempted" if isinstance(error, Preempted) else "failed"
        # What cannot be written there is said on the screen all the same.
        with saying, contextlib.suppress(StorageError, DataError):
            log.sync()
            done = sum(1 for _ in read_metrics(folder.metrics)) if is_writer() else 0
            said = f"{type(error).__name__}: {error}"
            write_status(folder, status, done, saved=saver.durable, error=said)

    def say_lost(error: PPOJaxError) -> None:
        lost.set()
        say(error)

    with processes.on_lost(say_lost):
        try:
            yield
        except BaseException as error:
            if not lost.is_set():  # what this process fails with comes of it
                say(error)
            raise


def _host_rewards(stack: ExitStack, experiment: Experiment, folder: RunFolder, opened: Opened):
    """What calls the rewards and judges that are ordinary Python, in processes of their own that
    start now; None where there are none, or where they are to run in this process."""
    options, parts = opened.config.reward, [*opened.parts, *opened.judge]
    if options.workers == 0 or all(part.host is None for part in parts):
        return None
    own = f"-{processes.index()}" if processes.count() > 1 else ""
    if not is_writer():  # which publishes its own
        stack.callback(_publish, folder)
    log = storage.to_append(folder.root / f"reward{own}.log")
    return stack.enter_context(open_pool(experiment.path, log, options)).call


def _publish(folder: RunFolder) -> None:
    with contextlib.suppress(StorageError):  # an error on its way is the one to report
        storage.publish(folder.root)


def note_complete(folder: RunFolder, step: int) -> None:
    """Nothing is left to do, unless the process that did it all had no time to say so."""
    if read_status(folder).get("status") != "done":
        write_status(folder, "done", step, saved=step)
    console.say(f"{folder.root}: already complete at iteration {step}, nothing to do")


def resume(begun: Begun, state: TrainState, args: TrainArgs) -> tuple[TrainState, int]:
    """The state that the run goes on from, and its step: `state`, the one before the first
    iteration; or that of the checkpoint it has found, or of one before it where its files are what
    was written and still cannot be read, and `state` is given up for it."""
    folder, start = begun.folder, begun.start
    if start is None:
        return state, 0
    clock = time.monotonic()
    abstract = abstract_like(state)
    for leaf in jax.tree.leaves(state):  # the devices may not have room for two
        leaf.delete()
    unread: dict[int, str] = {}
    while True:
        why = ""
        try:
            state = jax.block_until_ready(restore(folder.checkpoints, start, abstract))
        except Unreadable as error:
            why = str(error)
        read = exchange("restored", why)
        if not any(read):
            break
        if not read[0]:  # the checkpoint is sound, a file system or a network is not
            other = next(process for process, text in enumerate(read) if text)
            raise Unreadable(f"process {other}: {read[other]}; process 0 has read its part")
        unread[start] = read[0]
        before = on_first("start", functools.partial(_before, folder, start, begun.facts, args))
        if before is None:  # nothing is moved: it may be the machine that is at fault
            raise Unreadable("; ".join(unread.values()))
        start = before
    on_first("aside", lambda: _put_aside(folder, unread, start))
    begun.saver.durable = start
    console.say(
        f"{folder.root}: resumed at iteration {start} (files checked in {begun.checking:.1f} s, "
        f"restored in {time.monotonic() - clock:.1f} s)"
    )
    return state, start


def _before(folder: RunFolder, step: int, facts: Mapping[str, Any], args: TrainArgs) -> int | None:
    """The step before one that cannot be read; None: there is none, or may be none."""
    if args.strict_resume:
        return None
    return find_start(folder.checkpoints, facts, args, console.warn, before=step)


def _put_aside(folder: RunFolder, unread: Mapping[int, str], start: int) -> None:
    for step, why in unread.items():
        aside = removal.put_aside(folder.checkpoints, step)
        console.warn(f"{why}; put aside as {aside.name}, going on from step {start}")
