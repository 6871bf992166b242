"""Verifier of mathematical answers (LaTeX, sets, intervals, expressions) by math-verify, on the
host.

math-verify reads a text into SymPy, which works out what it is told to, 9^{9^9} included. So it
runs in a process of its own, and a comparison that is not done in time ends that process: the
response has the score 0 then, and the next one a new process.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ppo_jax.errors import DataError, RewardError
from ppo_jax.rewards.arithmetic import MAX_TAIL
from ppo_jax.rewards.checks import need_number, need_package, rows
from ppo_jax.rewards.math_process import MAX_SECONDS

START_SECONDS = 60.0  # to import SymPy on a busy machine


def math_answer(*, seconds: float = 3.0) -> Callable[..., list[float]]:
    """Reward: 1 if math-verify (Kydlíček 2025) takes the response's answer for the column
    `answer`, else 0.

    The response's answer is its last box, else the last formula or number of its last
    `MAX_TAIL` characters. `answer` is a number or a text: LaTeX with or without `$`, or a whole
    solution with a `\\boxed{}` or, as in GSM8K, `####`. A comparison has `seconds`; one that takes
    longer scores 0. A batch of nothing but such ones must fit into `reward.timeout`.

    Raises ConfigError for unusable options and without the package. The reward raises DataError at
    a row whose `answer` is not read, RewardError if its process does not start.
    """
    need_package("math_answer", "math_verify", "math")
    limit = need_number("math_answer", "seconds", seconds, 0.1, MAX_SECONDS)
    judge = Judge(limit)

    def math_answer(prompts: list, responses: list[str], answer: list) -> list[float]:
        pairs = rows(responses, answer=answer)
        return [float(judge.compare(formula(wanted), text[-MAX_TAIL:])) for text, wanted in pairs]

    return math_answer


def formula(answer: Any) -> str:
    """A reference as math-verify reads it; DataError if it is neither a text nor a number."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        kind = type(answer).__name__
        raise DataError(f"column answer: {str(answer)[:80]!r} of type {kind} is no text or number")
    text = str(answer).rpartition("####")[2].strip()
    if not text:
        raise DataError(f"column answer: {answer!r} holds no answer")
    return text if "$" in text or "\\boxed" in text else f"${text}$"


class Judge:
    """The process that compares, started when it is first needed and whenever it had to be ended.
    One comparison at a time."""

    def __init__(self, seconds: float):
        self.seconds, self.lock = seconds, threading.Lock()
        self.process: subprocess.Popen | None = None

    def compare(self, reference: str, response: str) -> bool:
        """Whether they agree; False if that is not known in time."""
        with self.lock:
            process = self._ready()
            try:
                said = _ask(process, json.dumps([reference, response]), self.seconds)
            except (TimeoutError, EOFError):
                self._end()
                return False
        if said == "?":
            raise DataError(f"column answer: {reference[:80]!r} is not read by math-verify")
        return said == "1"

    def _ready(self) -> subprocess.Popen:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self._end()
        process = subprocess.Popen(
            [sys.executable, "-m", "ppo_jax.rewards.math_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.process = process
        weakref.finalize(self, _kill, process)
        try:
            said = _ask(process, None, START_SECONDS)
        except (TimeoutError, EOFError) as error:
            self._end()
            raise RewardError(f"the process of math-verify did not start ({error})") from None
        assert said == "ready", said
        return process

    def _end(self) -> None:
        if self.process is not None:
            _kill(self.process)
            self.process = None


def _ask(process: subprocess.Popen, line: str | None, seconds: float) -> str:
    """The line that answers a line. Raises TimeoutError, or EOFError if the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    until = time.monotonic() + seconds
    if line is not None:
        try:
            # It waits for lines, so all of this one is taken, whatever a pipe holds.
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise EOFError("it has ended") from None
    said, poll = b"", select.poll()
    poll.register(process.stdout, select.POLLIN)
    while not said.endswith(b"\n"):
        if not poll.poll(1000 * max(until - time.monotonic(), 0.0)):
            raise TimeoutError(f"no answer in {seconds:g} s")
        block = os.read(process.stdout.fileno(), 64)
        if not block:
            raise EOFError("it has ended")
        said += block
    return said.decode().strip()


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet
                pipe.close()
