"""What a run is shown with beside its jsonl files, which stay what is true: TensorBoard."""

import contextlib
import dataclasses
import json
import math
import numbers
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ppo_jax import console
from ppo_jax.config import RunOptions
from ppo_jax.metrics import Tracker, read_metrics, read_samples
from ppo_jax.processes import is_writer
from ppo_jax.run_folder import RunFolder
from ppo_jax.text import one_line, visible

TENSORBOARD = "tensorboard"  # folder of a run
EVENTS = "events.out.tfevents.*"
SECONDS = "time/iteration"
FLUSH_SECONDS = 5.0  # TensorBoard looks for news every thirty


@contextlib.contextmanager
def open_trackers(options: RunOptions, folder: RunFolder) -> Iterator[list[Tracker]]:
    """The trackers that a run asks for, which know all iterations in its logs; in the process that
    writes. They never raise: one that fails is said once, and then told nothing more."""
    if not (options.tensorboard and is_writer()):
        yield []
        return
    tracker = Tolerant(lambda: open_tensorboard(folder), f"{folder.root / TENSORBOARD}")
    try:
        yield [tracker]
    finally:
        tracker.close()


class Tolerant:
    """A tracker that may fail without harm to the run."""

    def __init__(self, make: Callable[[], Tracker], what: str):
        self.tracker, self.what = None, what
        with self._said():
            self.tracker = make()

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self._tell(lambda tracker: tracker.write(step, metrics))

    def write_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._tell(lambda tracker: tracker.write_samples(step, rows))

    def sync(self) -> None:
        self._tell(lambda tracker: tracker.sync())

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        if self.tracker is not None:
            with self._said():
                act(self.tracker)

    @contextlib.contextmanager
    def _said(self):
        try:
            yield
        except Exception as error:  # of another library, too
            self.tracker = None
            kind = type(error).__name__
            console.warn(f"{self.what}: {kind}: {one_line(error)}; the run goes on without it")


@dataclasses.dataclass
class TensorBoard:
    """One event file, written where it is called: tensorboardX's own thread would hang, not fail,
    on a full disk."""

    events: Any  # tensorboardX's EventsWriter
    flushed: float = 0.0  # when, on the monotonic clock

    def write(
        self, step: int, metrics: Mapping[str, float | int], clock: float | None = None
    ) -> None:
        """One event of all numbers; `clock` is when the iteration ended, seconds; None: now."""
        numeric = {name: x for name, x in metrics.items() if isinstance(x, numbers.Real)}
        values = [{"tag": name, "simple_value": float(x)} for name, x in numeric.items()]
        self._add(step, clock, {"value": values})

    def write_samples(
        self, step: int, rows: Sequence[Mapping[str, Any]], clock: float | None = None
    ) -> None:
        """One text of all samples of an iteration."""
        from tensorboardX.summary import text  # pyright: ignore

        if rows:
            summary = text("samples", samples_text(rows))
            self._add(step, clock, summary)

    def sync(self) -> None:
        self.events.flush()
        self.flushed = time.monotonic()

    def close(self) -> None:
        self.events.close()

    def _add(self, step: int, clock: float | None, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

        wall = time.time() if clock is None else clock
        self.events.write_event(Event(wall_time=wall, step=int(step), summary=summary))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.sync()


def open_tensorboard(folder: RunFolder) -> TensorBoard:
    """An event file of the run's logs so far, in the place of all that were there: an iteration
    that is run again after a crash would stand in two of them.

    The logs hold no times of day: the iterations are put one after another, up to now.
    """
    from tensorboardX.event_file_writer import EventsWriter  # pyright: ignore

    where = folder.root / TENSORBOARD
    where.mkdir(exist_ok=True)
    for old in where.glob(EVENTS):
        old.unlink()
    board = TensorBoard(EventsWriter(str(where / "events")))
    rows = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    seconds = [float(row.get(SECONDS, 0.0)) for row in rows]
    seconds = [s if math.isfinite(s) else 0.0 for s in seconds]
    clocks, clock = {}, time.time() - sum(seconds)
    for row, took in zip(rows, seconds, strict=True):
        clock += took
        clocks[row["step"]] = clock
        metrics = {name: value for name, value in row.items() if name != "step"}
        board.write(row["step"], metrics, clock)
    samples = read_samples(folder.samples) if folder.samples.is_file() else []
    for step, group in groupby(samples, key=lambda row: row["step"]):
        board.write_samples(step, list(group), clocks.get(step))
    board.sync()
    return board


def samples_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Samples as Markdown that shows them literally: one block of code, which only a line that is
    not indented would end, and `visible` leaves no line in a line."""
    return "\n".join(f"    {visible(_line(row))}" for row in rows)


def _line(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    shown = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return f"{row['score']}  {shown} -> {row['response']}"
