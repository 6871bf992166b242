"""SIGTERM, SIGINT, SIGHUP: what there is time for is saved, and one line says what is there.

The state of the step in flight has been donated, so until that step ends there is nothing to save.
A step that would end in time is waited for; else the run ends at once, with what is on the disk.

The main thread may be inside of XLA for minutes, where Python runs no signal handler. So the signal
is read by a thread of its own, from the pipe into which the C handler writes its number.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ppo_jax.errors import Preempted
from ppo_jax.text import one_line, visible

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE = 25.0  # seconds, until the configuration has been read
TOGETHER = 1.0  # seconds within which several signals are one: make hands on what it got itself
# What is done before the end may fail, or last: a disk that is gone, a pipe that nobody reads.
KNOWN_SECONDS = 3.0  # for what is saved to be looked up, perhaps over a network
SAID_SECONDS = 1.0  # for a line to be written
TOLD_SECONDS = 6.0  # for other processes to be told, and to end

Result = TypeVar("Result")


class Preemption:
    """What the run is doing, and whether it has been told to end."""

    def __init__(self) -> None:
        self.grace = GRACE  # seconds from the signal to the end
        self.asked = threading.Event()
        self._asked_at = math.inf
        # The newest step on the disk; None: the run folder has not been looked at.
        self.durable: Callable[[], int | None] | None = None
        self.settle: Callable[[float], None] = lambda seconds: None  # waits for a save under way
        self.tell: Callable[[int, str], None] = lambda code, line: None  # other processes
        self._lock = threading.Lock()
        self._phase, self._ends = "start", math.inf
        self._last_resort: threading.Timer | None = None

    def begin(self, phase: str, expected: float = math.inf) -> None:
        """The main thread begins something; `expected` seconds on it has looked at `asked` and
        saved: two iterations and a save later, within the loop. inf: it will not look."""
        with self._lock:
            self._phase, self._ends = phase, time.monotonic() + expected

    def signalled(self, number: int) -> None:
        """Called by the watching thread."""
        name = signal.Signals(number).name
        with self._lock:
            phase, left = self._phase, self._ends - time.monotonic()
        if self.asked.is_set():
            if time.monotonic() - self._asked_at > TOGETHER:
                self._end(f"second signal, during {phase}")
            return
        self._asked_at = time.monotonic()
        self.asked.set()
        why = f"{name} during {phase}"
        if left > self.grace:
            ending = threading.Thread(target=self._settle_and_end, args=(why,))
        else:
            late = (f"{name}: {phase} took longer than run.grace={self.grace:g} s",)
            ending = self._last_resort = threading.Timer(self.grace, self._end, late)
            ending.daemon = True
        try:
            ending.start()
        except Exception:  # no thread is to be had
            self._end(why)

    def cancel(self) -> None:
        """Nothing is left to be ended."""
        if self._last_resort is not None:
            self._last_resort.cancel()

    def saved(self, step: int) -> Preempted:
        """The error that ends the run with its code, after the save that was asked for."""
        newest = self.durable() if self.durable else None
        return Preempted(f"preempted at iteration {step}, saved step {newest}")

    def have(self) -> str:
        """What is saved, in words, within KNOWN_SECONDS; nothing is raised."""
        slow = f"what is saved cannot be read (no answer in {KNOWN_SECONDS:g} s)"
        return within(KNOWN_SECONDS, self._have) or slow

    def _have(self) -> str:
        if self.durable is None:
            return "what was saved before stays"
        try:
            step = self.durable()
        except Exception as error:
            return f"what is saved cannot be read ({one_line(error)})"
        return "nothing was saved yet" if step is None else f"step {step} is saved"

    def _settle_and_end(self, why: str) -> None:
        within(self.grace, lambda: self.settle(self.grace))
        self._end(why)

    def _end(self, why: str) -> None:
        """The process ends here, whatever comes."""
        try:
            write_line(f"preempted ({why}); {self.have()}; the same command goes on from there")
            within(TOLD_SECONDS, lambda: self.tell(Preempted.exit_code, f"preempted: {why}"))
        finally:
            os._exit(Preempted.exit_code)


def within(seconds: float, act: Callable[[], Result]) -> Result | None:
    """What `act` returns, in a thread beside this one; None where it raises, or takes longer."""
    results: list[Result] = []

    def keep() -> None:
        with contextlib.suppress(Exception):
            results.append(act())

    thread = threading.Thread(target=keep, daemon=True)
    with contextlib.suppress(Exception):  # no thread is to be had
        thread.start()
        thread.join(seconds)
    return results[0] if results else None


def write_line(line: str) -> None:
    """The last that a process says, on stderr, if that takes it within SAID_SECONDS."""

    def write() -> None:
        # Not through Python's buffers: a thread that was interrupted may hold their lock.
        stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
        cursor = "\x1b[?25h" if os.isatty(stderr) else ""  # that a bar has hidden
        os.write(stderr, f"{cursor}ppo-jax: {visible(line)}\n".encode())

    within(SAID_SECONDS, write)


def _lets_hang_up(number: int) -> bool:
    """Whether it was started by nohup or the like, to outlive its terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextlib.contextmanager
def watch(preemption: Preemption) -> Iterator[None]:
    """Signals are `preemption`'s to handle; in the main thread alone."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as the C handler needs it
    # Python calls nothing then, but without a handler of its own the number is not written either.
    before = {n: signal.signal(n, lambda *_: None) for n in SIGNALS if not _lets_hang_up(n)}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def read() -> None:
        while (number := os.read(reading, 1)) != b"\0":
            if number[0] in before:
                preemption.signalled(number[0])

    thread = threading.Thread(target=read, name="preemption", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")
        thread.join()
        preemption.cancel()
        os.close(reading)
        os.close(writing)
