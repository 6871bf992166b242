"""The run's logs: one line of strict JSON an iteration in `metrics.jsonl`, and its samples.

JSON has no NaN, so a number that is not finite is written as the string "nan", "inf" or "-inf":
`float()` reads them back, which is what `read_metrics` does.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from ppo_jax import faults
from ppo_jax.config_io import NONFINITE
from ppo_jax.errors import StorageError
from ppo_jax.processes import is_writer
from ppo_jax.rewards.base import ROWS
from ppo_jax.run_folder import RunFolder, read_lines
from ppo_jax.storage import publish, to_append
from ppo_jax.types import Array

PHASES = ("rollout", "score", "update")


class Log(NamedTuple):
    """A file of JSON lines, open to be added to."""

    path: Path
    descriptor: int | None  # None in the processes that do not write


class Tracker(Protocol):
    """What is told of a run beside its own logs, after them (`trackers`). It does not raise."""

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None: ...

    def write_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class MetricsLog(NamedTuple):
    metrics: Log
    samples: Log
    trackers: Sequence[Tracker] = ()

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Add the line of iteration `step`, which is on its way to the disk on return."""
        _append(self.metrics, [{"step": int(step), **metrics}])
        for tracker in self.trackers:
            tracker.write(step, metrics)

    def write_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add one line a sample, each with `step` first."""
        _append(self.samples, [{"step": int(step), **row} for row in rows])
        for tracker in self.trackers:
            tracker.write_samples(step, rows)

    def sync(self) -> None:
        """Wait until what has been written is on the disk, and where gs:// asks for it uploaded.
        Raises StorageError."""
        for log in (self.metrics, self.samples):
            if log.descriptor is not None:
                try:
                    os.fsync(log.descriptor)
                except OSError as error:
                    raise _unwritable(log, error) from None
        if self.metrics.descriptor is not None:
            publish(self.metrics.path.parent)
        for tracker in self.trackers:
            tracker.sync()


@contextmanager
def open_metrics(folder: RunFolder, trackers: Sequence[Tracker] = ()) -> Iterator[MetricsLog]:
    """The run's two logs, added to and never overwritten; only the first process writes. What goes
    into them the trackers are told.

    Raises StorageError, here or on writing, if a file cannot be written.
    """
    logs = []
    try:
        for path in (folder.metrics, folder.samples):
            logs.append(Log(path, _open_to_append(to_append(path)) if is_writer() else None))
        if is_writer():
            publish(folder.root)  # there, if without a line, as a file that has been opened is
        yield MetricsLog(logs[0], logs[1], trackers)
    finally:
        for log in logs:
            if log.descriptor is not None:
                os.close(log.descriptor)


def to_host(metrics: Mapping[str, Array]) -> dict[str, float | int]:
    """Scalars of the device as Python numbers, fetched together: this waits for their step.

    The mean of a reward that speaks of some rows alone is left out where the batch has none.
    """
    found = {name: value.item() for name, value in jax.device_get(dict(metrics)).items()}
    return {name: value for name, value in found.items() if found.get(name + ROWS) != 0}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without a last line that a crash has torn."""
    return [
        {name: float(value) if value in NONFINITE else value for name, value in row.items()}
        for _, row in read_lines(path)
    ]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a `samples.jsonl`, without a last line that a crash has torn."""
    return [row for _, row in read_lines(path)]


def throughput(metrics: Mapping[str, float | int], sequences: int) -> dict[str, float]:
    """Response tokens a second: `throughput/total`, and by phase where phases were timed; where
    nothing was sampled, tokens of all that was trained on.

    `sequences` is the number of sequences an iteration; seconds come from `time/iteration` and
    `time/rollout`, `time/score`, `time/update`.
    """
    tokens = metrics.get("rollout/length_mean", math.nan) * sequences
    tokens = metrics.get("tokens", tokens)
    times = {"total": metrics.get("time/iteration")}
    times |= {phase: metrics.get(f"time/{phase}") for phase in PHASES}
    return {f"throughput/{name}": tokens / time for name, time in times.items() if time}


def first_and_last(
    rows: Sequence[Mapping[str, Any]], key: str, count: int = 5
) -> tuple[float, float]:
    """Mean of a metric over the first and over the last `count` rows that have it, else NaN."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return math.nan, math.nan
    first, last = values[:count], values[-count:]
    return sum(first) / len(first), sum(last) / len(last)


def _open_to_append(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        _cut_torn_line(descriptor)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened to write ({error.strerror})") from None
    return descriptor


def _cut_torn_line(descriptor: int, block: int = 1 << 16) -> None:
    """Drop what follows the last newline, else the next line would be glued to it."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def _append(log: Log, rows: Sequence[Mapping[str, Any]]) -> None:
    if log.descriptor is None or not rows:
        return
    lines = "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)
    data = lines.encode("ascii")
    whole = os.fstat(log.descriptor).st_size
    try:
        faults.point("metrics")
        while data:  # a full disk takes part of the line first, and fails on the rest
            data = data[os.write(log.descriptor, data) :]
    except OSError as error:
        os.ftruncate(log.descriptor, whole)
        raise _unwritable(log, error) from None


def _unwritable(log: Log, error: OSError) -> StorageError:
    return StorageError(f"{log.path}: cannot be written ({error.strerror})")


def _strict(value: Any) -> Any:
    """The value with Python numbers for NumPy's, and strings for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX, scalars and arrays
        return _strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
