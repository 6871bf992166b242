"""Commands of ppo-jax as processes of their own, several at a time, some after others.

What signals come are handed on to all that run: each saves and ends with its own code, and no other
begins.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ppo_jax.errors import LockedError, Preempted
from ppo_jax.preemption import SIGNALS

LOOK_SECONDS = 0.1  # between looks at which have ended
LOCKED_SECONDS = 5.0  # between tries for what another process has in hand
READ_SECONDS = 5.0  # for the last lines of one that has ended
GPU_SHARE = 0.9  # of a GPU's memory, for all that run at a time


class Job(NamedTuple):
    """A command that is run once."""

    name: str
    words: tuple[str, ...]  # after `ppo-jax`
    after: tuple[str, ...] = ()  # names of those that must have ended well
    # Another process may be at it, which is waited for; tells whether it has been done meanwhile.
    is_done: Callable[[], bool] | None = None


class Ended(NamedTuple):
    """How the jobs came out."""

    codes: dict[str, int]  # exit codes by name, in the order in which they ended
    stopped: bool  # by a signal

    @property
    def code(self) -> int:
        """Of the first that failed, else 0; of what was stopped before all had begun, 75."""
        failed = [code for code in self.codes.values() if code]
        return next(iter(failed), Preempted.exit_code if self.stopped else 0)


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    reader: threading.Thread | None  # of its output, where several run at a time


def run_jobs(jobs: Sequence[Job], at_once: int = 1) -> Ended:
    """Run them, `at_once` at a time, in their order. One whose predecessor fails is left out; the
    others go on."""
    codes: dict[str, int] = {}
    running: list[_Running] = []
    waiting, not_before = list(jobs), dict.fromkeys((job.name for job in jobs), 0.0)
    stop = threading.Event()
    with _handing_on(running, stop):
        while running or (waiting and not stop.is_set()):
            while len(running) < at_once and not stop.is_set():
                ready = (job for job in waiting if _is_ready(job, codes, not_before))
                job = next(ready, None)
                if job is None:
                    break
                waiting.remove(job)
                if job.is_done is not None and job.is_done():
                    codes[job.name] = 0
                    continue
                running.append(_start(job, at_once))
                if stop.is_set():  # the signal came before it could be handed on
                    running[-1].process.terminate()
            time.sleep(LOOK_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                code = _code(one)
                if code == LockedError.exit_code and one.job.is_done is not None:
                    not_before[one.job.name] = time.monotonic() + LOCKED_SECONDS
                    waiting.insert(0, one.job)
                else:
                    codes[one.job.name] = code
            waiting = _still_possible(waiting, running, codes)
    return Ended(codes, stop.is_set() and bool(waiting))


def _is_ready(job: Job, codes: dict[str, int], not_before: dict[str, float]) -> bool:
    after = all(codes.get(name) == 0 for name in job.after)
    return after and time.monotonic() >= not_before[job.name]


def _still_possible(
    waiting: list[Job], running: Sequence[_Running], codes: dict[str, int]
) -> list[Job]:
    """Without those that come after one that has failed, or that has been left out."""
    there = {job.name for job in waiting} | {one.job.name for one in running}
    there |= {name for name, code in codes.items() if code == 0}
    return [job for job in waiting if there.issuperset(job.after)]


def _start(job: Job, at_once: int) -> _Running:
    """Alone it has the terminal; among others its lines go by its name."""
    command = [sys.executable, "-m", "ppo_jax", *job.words]
    print(f"{job.name}: ppo-jax {shlex.join(job.words)}", flush=True)
    if at_once == 1:
        return _Running(job, subprocess.Popen(command), None)
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_SHARE / at_once:.3f}"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=share | os.environ,
    )
    reader = threading.Thread(target=_hand_out, args=(job.name, process), daemon=True)
    reader.start()
    return _Running(job, process, reader)


def _hand_out(name: str, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:  # read to the end, or the process would wait for its reader
        with contextlib.suppress(OSError):
            line = line.removesuffix("\n")  # the last one may lack it
            print(f"{name} | {line}\n", end="", flush=True)  # at once, or another would get between


def _code(one: _Running) -> int:
    """As a shell has it, once all that it said has been shown."""
    if one.reader is not None:
        one.reader.join(READ_SECONDS)
    code = one.process.returncode
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _handing_on(running: Sequence[_Running], stop: threading.Event) -> Iterator[None]:
    """Signals go to all that run. Ctrl-C reaches them from the terminal as well: a run takes what
    comes within a second for one signal."""

    def hand_on(number, frame) -> None:
        stop.set()
        for one in running:
            one.process.send_signal(number)

    before = {n: signal.getsignal(n) for n in SIGNALS}
    handled = [n for n, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, hand_on)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
