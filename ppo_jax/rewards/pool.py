"""Host rewards in processes that can be ended: what hangs, dies or raises there never holds up the
run beyond its time, and never becomes a score of 0."""

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError
from ppo_jax.rewards.base import Part
from ppo_jax.rewards.host import HostScores, Rows, join, no_time, stood_at
from ppo_jax.rewards.worker import MARK

START_SECONDS = 120.0  # to import JAX and the experiment on a busy machine
STACK_SECONDS = 0.2  # for a process to write where it stands, before it is ended


class Worker:
    """One worker process, started again after it had to be ended."""

    def __init__(self, experiment: Path, log: Path):
        self.experiment, self.log = experiment, log
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process, which needs seconds until it is ready; `ask` waits for that."""
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        os.set_blocking(self.requests, False)
        with tempfile.TemporaryFile() as file, self.log.open("ab") as log:
            file.truncate(MARK.size)
            self.mark = mmap.mmap(file.fileno(), MARK.size)
            inherited = [requests, answers, file.fileno()]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ppo_jax.rewards.worker", str(self.experiment)),
                    *map(str, inherited),
                ],
                # No accelerator: the run's own process has it.
                env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is the run's to handle
            )
        os.close(requests)
        os.close(answers)
        self.unread, self.ready = b"", False

    def stop(self) -> None:
        """End the process and what it has started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.requests)
        os.close(self.answers)
        self.process = None

    def ask(
        self, part: Part, rows: Rows, options: RewardOptions, deadline: float, seed: int
    ) -> HostScores:
        """What `host.call` gives for these rows. Raises RewardError if it raises, is not done by
        the deadline or ends its process, which is started again when it is needed."""
        self.get_ready()
        # It tries rows one by one if it has to, and must be done with that in time.
        seconds = 0.8 * (deadline - time.monotonic())
        request = {"reward": part.name, "rows": rows, "seed": seed}
        request |= {"on_error": options.on_error, "seconds": seconds}
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

    def get_ready(self) -> None:
        """Wait until the process has imported the experiment, and start one if none is there."""
        if self.process is None:
            self.start()
        if not self.ready:
            try:
                self._read(time.monotonic() + START_SECONDS)
            except (TimeoutError, EOFError) as error:
                self.stop()
                raise RewardError(
                    f"{self.experiment}: the process of its reward did not start ({error}; "
                    f"output: {self.log})"
                ) from None
            self.ready = True

    def _write(self, data: bytes, deadline: float) -> None:
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [self.requests], [], left)[1]:
                raise TimeoutError
            try:
                data = data[os.write(self.requests, data) :]
            except BrokenPipeError:
                raise EOFError(self._end()) from None

    def _read(self, deadline: float) -> bytes:
        while b"\n" not in self.unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                raise TimeoutError("no sign of life in time")
            block = os.read(self.answers, 1 << 16)
            if not block:
                raise EOFError(self._end())
            self.unread += block
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _end(self) -> str:
        """How the process ended."""
        assert self.process is not None
        code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _late(self, part: Part, rows: Rows) -> RewardError:
        where = self._where(rows)
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        self.stop()
        return RewardError(
            f"reward {part.name} did not answer in time (reward.timeout, reward.row_timeout); it "
            f"stood at {where}; its process was ended (stack and output: {self.log})"
        )

    def _died(self, part: Part, rows: Rows, error: EOFError) -> RewardError:
        where = self._where(rows)
        self.stop()
        return RewardError(
            f"reward {part.name} ended its process ({error}) at {where} (output: {self.log})"
        )

    def _where(self, rows: Rows) -> str:
        return stood_at(rows, MARK.unpack_from(self.mark)[0])


class Pool:
    """The workers of a run. A batch goes to them in as many shares, or row by row."""

    def __init__(self, experiment: Path, log: Path, options: RewardOptions):
        self.options = options
        self.workers = [Worker(experiment, log) for _ in range(options.workers)]
        # Threads live as long as the workers: the system ends a process with the thread it is of.
        self.threads = ThreadPoolExecutor(options.workers, thread_name_prefix="reward")

    def start(self) -> None:
        list(self.threads.map(Worker.start, self.workers))

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.threads.shutdown()

    def call(self, part: Part, rows: Rows, seed: int) -> HostScores:
        """Scores of a batch. Raises RewardError; with `reward.on_error=mask` rows fail instead."""
        dealt = np.array_split(np.arange(len(rows.numbers)), len(self.workers))
        shares = [share for share in dealt if share.size]
        ask = lambda worker, share: self._share(worker, part, rows.pick(share), seed)
        pieces = list(self.threads.map(ask, self.workers, shares))
        return join(part, pieces, [share.size for share in shares])

    def _share(self, worker: Worker, part: Part, rows: Rows, seed: int) -> HostScores:
        worker.get_ready()
        deadline, count = time.monotonic() + self.options.timeout, len(rows.numbers)
        if self.options.row_timeout is None:
            try:
                return worker.ask(part, rows, self.options, deadline, seed)
            except RewardError:
                if self.options.on_error == "abort":
                    raise
        one = lambda i: self._row(worker, part, rows.pick([i]), deadline, seed + i)
        return join(part, [one(i) for i in range(count)], [1] * count)

    def _row(self, worker: Worker, part: Part, row: Rows, deadline: float, seed: int) -> HostScores:
        now, limit = time.monotonic(), self.options.row_timeout
        if now > deadline and self.options.on_error == "mask":
            return no_time(row)
        try:
            until = deadline if limit is None else min(deadline, now + limit)
            return worker.ask(part, row, self.options, until, seed)
        except RewardError as error:
            if self.options.on_error == "abort":
                raise
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
