"""Host rewards in processes that can be ended: what hangs, dies or raises there never holds up the
run beyond its time, and never becomes a score of 0."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError, StorageError
from ppo_jax.rewards.base import Part
from ppo_jax.rewards.host import HostScores, Rows, join, no_time, stood_at
from ppo_jax.rewards.spawn import spawn
from ppo_jax.rewards.worker import MARK

START_SECONDS = 120.0  # to import JAX and the experiment on a busy machine
STACK_SECONDS = 0.2  # for a process to write where it stands, before it is ended
END_SECONDS = 1.0  # for a process to be gone, once its pipe has ended
LOOK_SECONDS = 0.5  # a process that has ended is seen by then, even where its pipe has not


class Ended(RewardError):
    """A process that hung or died at a row of its request; -1: it is not known at which."""

    def __init__(self, message: str, row: int):
        super().__init__(message)
        self.row = row


class Worker:
    """One worker process, started again after it had to be ended."""

    def __init__(self, experiment: Path, log: Path):
        self.experiment, self.log = experiment, log
        self.process: subprocess.Popen | None = None
        self.lock, self.over = threading.Lock(), False  # over: it is not started again

    def start(self) -> None:
        """Start the process, which needs seconds until it is ready; `get_ready` waits for that."""
        with self.lock:
            if self.over:
                raise RewardError("the processes of rewards have been ended")
            self._start()

    def _start(self) -> None:
        spawned = spawn(self.experiment, self.log)
        self.process, self.requests, self.answers, self.mark = spawned
        self.unread, self.ready, self.began = b"", False, time.monotonic()

    def stop(self) -> None:
        """End the process and what it has started."""
        with self.lock:
            if self.process is None:
                return
            self._kill()
            self.process.wait()
            os.close(self.requests)
            os.close(self.answers)
            self.process = None

    def end(self) -> None:
        """End the process for good; a thread that asks it something finds it dead."""
        with self.lock:
            self.over = True
            self._kill()

    def _kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def ask(
        self, part: Part, rows: Rows, options: RewardOptions, deadline: float, seed: int
    ) -> HostScores:
        """What `host.call` gives for these rows, of a process that is ready. Raises RewardError if
        it raises, `Ended` if it is not done by the deadline or ends its process."""
        # It tries rows one by one if it has to, and must be done with that in time.
        seconds = 0.8 * (deadline - time.monotonic())
        request = {"reward": part.name, "rows": rows, "seed": (seed + rows.numbers[0]) % 2**32}
        request |= {"on_error": options.on_error, "seconds": seconds}
        MARK.pack_into(self.mark, 0, -1)
        try:
            self._write(json.dumps(request).encode() + b"\n", deadline)
            answer = json.loads(self._read(deadline))
        except TimeoutError:
            raise self._late(part, rows) from None
        except EOFError as error:
            raise self._died(part, rows, error) from None
        if "raised" in answer:
            raise RewardError(f"{answer['raised']} (traceback: {self.log})")
        scores = {name: np.array(x, np.float32) for name, x in answer["scores"].items()}
        return HostScores(scores, dict(answer["failed"]))

    def get_ready(self, deadline: float = math.inf) -> None:
        """Wait until the process has imported the experiment, and start one if none is there.

        Raises TimeoutError if the deadline comes first: the process goes on starting then.
        """
        if self.process is None:
            self.start()
        if self.ready:
            return
        latest = self.began + START_SECONDS
        try:
            said = json.loads(self._read(min(deadline, latest)))
            if "raised" in said:
                raise EOFError(said["raised"])
        except (TimeoutError, EOFError) as error:
            if isinstance(error, TimeoutError) and deadline < latest:
                raise
            self.stop()
            raise RewardError(
                f"{self.experiment}: the process of its reward did not start ({error}; "
                f"output: {self.log})"
            ) from None
        self.ready = True

    def _write(self, data: bytes, deadline: float) -> None:
        while data:
            self._wait(self.requests, select.POLLOUT, deadline)
            try:
                data = data[os.write(self.requests, data) :]
            except BrokenPipeError:
                raise EOFError(self._end()) from None

    def _read(self, deadline: float) -> bytes:
        while b"\n" not in self.unread:
            self._wait(self.answers, select.POLLIN, deadline)
            block = os.read(self.answers, 1 << 16)
            if not block:
                raise EOFError(self._end())
            self.unread += block
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        """Until the pipe is ready, or has ended."""
        assert self.process is not None
        poll = select.poll()
        poll.register(pipe, event)
        while True:  # once at least: what lies in the pipe is not late, whenever one looks
            left = deadline - time.monotonic()
            if poll.poll(1000 * min(max(left, 0.0), LOOK_SECONDS)):
                return
            if left <= 0:
                raise TimeoutError("no sign of life in time")
            # What it has started may hold the pipe open.
            if self.process.poll() is not None:
                raise EOFError(self._end())

    def _end(self) -> str:
        """How the process ended."""
        assert self.process is not None
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"  # and lives, until it is stopped
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _late(self, part: Part, rows: Rows) -> Ended:
        row = self._place()
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        self.stop()
        return Ended(
            f"reward {part.name} did not answer in time (reward.timeout, reward.row_timeout); it "
            f"stood at {stood_at(rows, row)}; its process was ended (stack and output: {self.log})",
            row,
        )

    def _died(self, part: Part, rows: Rows, error: EOFError) -> Ended:
        row = self._place()
        self.stop()
        return Ended(
            f"reward {part.name} ended its process ({error}) at {stood_at(rows, row)} "
            f"(output: {self.log})",
            row,
        )

    def _place(self) -> int:
        return MARK.unpack_from(self.mark)[0]


class Pool:
    """The workers of a run. A batch goes to them in as many shares, or row by row."""

    def __init__(self, experiment: Path, log: Path, options: RewardOptions):
        self.options = options
        self.workers = [Worker(experiment, log) for _ in range(options.workers)]
        # Threads live as long as the workers: the system ends a process with the thread it is of.
        self.threads = ThreadPoolExecutor(options.workers, thread_name_prefix="reward")

    def start(self) -> None:
        self._each(Worker.start, self.workers)

    def stop(self) -> None:
        for worker in self.workers:
            worker.end()
        self.threads.shutdown()
        for worker in self.workers:
            worker.stop()

    def call(self, part: Part, rows: Rows, seed: int) -> HostScores:
        """Scores of a batch. Raises RewardError; with `reward.on_error=mask` rows fail instead."""
        dealt = np.array_split(np.arange(len(rows.numbers)), len(self.workers))
        shares = [share for share in dealt if share.size]
        ask = lambda worker, share: self._share(worker, part, rows.pick(share), seed)
        pieces = self._each(ask, self.workers, shares)
        return join(part, pieces, [share.size for share in shares])

    def _each(self, function: Callable, *lists: Sequence) -> list:
        """What it returns for each worker, in threads."""
        try:
            pending = self.threads.map(function, *lists)
        except RuntimeError as error:  # the system gives no more threads
            experiment = self.workers[0].experiment
            raise StorageError(f"{experiment}: no thread for its reward ({error})") from None
        return list(pending)

    def _share(self, worker: Worker, part: Part, rows: Rows, seed: int) -> HostScores:
        worker.get_ready()
        options, now = self.options, time.monotonic()
        deadline, failed = now + options.timeout, {}
        if options.row_timeout is None:
            # With "mask" there must be time left to ask the rows one by one.
            some = 1.0 if options.on_error == "abort" else 0.5
            try:
                return worker.ask(part, rows, options, now + some * options.timeout, seed)
            except Ended as error:
                if options.on_error == "abort":
                    raise
                if error.row in range(len(rows.numbers)):
                    failed[error.row] = _failed(rows.pick([error.row]), error)
        one = lambda i: self._row(worker, part, rows.pick([i]), deadline, seed)
        pieces = [failed[i] if i in failed else one(i) for i in range(len(rows.numbers))]
        return join(part, pieces, [1] * len(pieces))

    def _row(self, worker: Worker, part: Part, row: Rows, deadline: float, seed: int) -> HostScores:
        mask, limit = self.options.on_error == "mask", self.options.row_timeout
        try:
            worker.get_ready(deadline)
            now = time.monotonic()
            left = deadline - now
            if left <= 0 and mask:
                return no_time(row)
            # Without a limit of its own it leaves most for the others, should it hang as well.
            until = now + min(left, left / 4 if limit is None else limit)
            return worker.ask(part, row, self.options, until, seed)
        except TimeoutError:
            return no_time(row)
        except Ended as error:
            if not mask:
                raise
            return _failed(row, error)


def _failed(row: Rows, error: RewardError) -> HostScores:
    return HostScores({}, {row.numbers[0]: str(error)})


@contextlib.contextmanager
def open_pool(experiment: Path, log: Path, options: RewardOptions) -> Iterator[Pool]:
    """Workers that have been started, and are ended in any case."""
    if not experiment.is_file():
        raise RewardError(
            f"{experiment}: a host reward is imported from its experiment's file, which is not "
            "there; with reward.workers=0 it runs in this process, without a limit of time"
        )
    pool = Pool(experiment.resolve(), log, options)
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()
