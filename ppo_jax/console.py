"""What a run shows: a table of facts, a bar or a line an iteration, samples, a summary.

Text of a model or a data set is shown literally: no markup or escape sequence in it reaches the
terminal. Output that is no terminal gets one plain line an iteration and no control characters.
"""

import contextlib
import functools
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ppo_jax.metrics import first_and_last
from ppo_jax.processes import is_writer
from ppo_jax.text import visible

Update = Callable[[int, Mapping[str, float | int]], None]

LOG_WIDTH = 120  # columns where there is no terminal to ask
RECENT = 20  # iterations whose median time the ETA goes by; the first one holds the compilation
COLUMNS = (  # label, metric, format
    ("loss", "loss", "{:.4f}"),
    ("eval loss", "eval/loss", "{:.4f}"),
    ("eval accuracy", "eval/accuracy", "{:.3f}"),
    ("score", "objective/scores", "{:.3f}"),
    ("eval score", "eval/scores", "{:.3f}"),
    ("eval judge", "eval/judge", "{:.3f}"),
    ("wins", "eval/win_rate", "{:.3f}"),
    ("kl", "objective/kl", "{:.3f}"),
    ("kl_coef", "objective/kl_coef", "{:.4f}"),
    ("length", "rollout/length_mean", "{:.1f}"),
    ("tok/s", "throughput/total", "{:,.0f}"),
    ("rollout tok/s", "throughput/rollout", "{:,.0f}"),
    ("score tok/s", "throughput/score", "{:,.0f}"),
    ("update tok/s", "throughput/update", "{:,.0f}"),
    ("s/it", "time/iteration", "{:.2f}"),
)
SUMMARY = (  # label, metric, unit
    ("loss", "loss", ""),
    ("score", "objective/scores", ""),
    ("kl", "objective/kl", " nats"),
)


@functools.cache
def shared_console() -> Console:
    """The console of this process; silent in all but the first."""
    width = None if sys.stdout.isatty() else LOG_WIDTH
    output: Any = Output()
    return Console(file=output, width=width, quiet=not is_writer(), highlight=False)


class Output:
    """`sys.stdout`, as far as it goes: a run does not end, nor is its code another one, because its
    disk is full, its terminal gone, or the reader of a pipe (Ctrl-C reaches `tee` as well)."""

    @property
    def _file(self) -> Any:
        # A live bar takes the place of sys.stdout, and hands on what is printed.
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":  # by which rich would go past this one
            raise AttributeError(name)
        return getattr(self._file, name)


def show_header(
    facts: Mapping[str, Any], *, title: str = "ppo_jax", console: Console | None = None
) -> None:
    """A table of what is about to run: experiment, model, devices, batch, run folder, ..."""
    console = console or shared_console()
    table = Table(show_header=False, title=_text(title, console), title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(_text(name, console), _text(str(fact), console))
    console.print(table)


@contextmanager
def show_progress(
    total: int, *, start: int = 0, bar: bool = True, console: Console | None = None
) -> Iterator[Update]:
    """Yields `update(done, metrics)`, to be called after each iteration, of which `done` are over.

    A live bar with the time left on a terminal, unless `bar` is off; elsewhere a line a call.
    """
    console = console or shared_console()
    seconds: deque[float] = deque(maxlen=RECENT)
    rates: dict[str, float] = {}  # phases are timed in one iteration, and shown from then on

    def describe(done: int, metrics: Mapping[str, float | int]) -> str:
        rates.update({k: v for k, v in metrics.items() if k.startswith("throughput/")})
        metrics = {**rates, **metrics}
        if "time/iteration" in metrics:
            seconds.append(metrics["time/iteration"])
        left = (total - done) * statistics.median(seconds) if seconds else math.nan
        return f"{done}/{total}  eta {duration(left)}  {iteration_line(metrics)}"

    if not (bar and console.is_terminal and not console.is_dumb_terminal):
        yield lambda done, metrics: _print_line(describe(done, metrics), console)
        return

    def frame(done: int, line: str) -> Table:
        # Two rows, so that a narrow terminal cuts numbers off and never the bar.
        grid = Table.grid()
        grid.add_row(ProgressBar(total=max(total, 1), completed=done))
        grid.add_row(Text(line, no_wrap=True, overflow="ellipsis"))
        return grid

    with Live(frame(start, f"{start}/{total}"), console=console, refresh_per_second=4) as live:
        yield lambda done, metrics: live.update(frame(done, describe(done, metrics)))


def say(line: str) -> None:
    """A line on stdout."""
    _print_line(line, shared_console())


def warn(line: str) -> None:
    """A line on stderr, above a bar if there is one, that something needs attention."""
    if is_writer():
        encoding = sys.stderr.encoding or "utf-8"
        with contextlib.suppress(OSError):  # as `Output`
            print(f"ppo-jax: warning: {visible(line, encoding)}", file=sys.stderr, flush=True)


def iteration_line(metrics: Mapping[str, float | int]) -> str:
    """The metrics worth a look each iteration, those of COLUMNS that are there, in one line."""
    return "  ".join(
        f"{label} {form.format(metrics[key])}" for label, key, form in COLUMNS if key in metrics
    )


def show_samples(
    title: str, rows: Sequence[Mapping[str, Any]], *, console: Console | None = None
) -> None:
    """A table of `prompt`, `response` and `score` of each row."""
    console = console or shared_console()
    table = Table(title=_text(title, console), show_lines=True, title_justify="left")
    table.add_column("prompt", overflow="fold", ratio=2)
    table.add_column("continuation", overflow="fold", ratio=3)
    table.add_column("score", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            _text(str(row["prompt"]), console),
            _text(str(row["response"]), console),
            _score(row),
        )
    console.print(table)


def show_comparison(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    console: Console | None = None,
) -> None:
    """The same prompts continued before and after training, side by side."""
    console = console or shared_console()
    table = Table(title="Before and after training", show_lines=True, title_justify="left")
    table.add_column("prompt", overflow="fold", ratio=2)
    for name in ("before", "after"):
        table.add_column(name, overflow="fold", ratio=3)
        table.add_column("score", justify="right", no_wrap=True)
    for old, new in zip(before, after, strict=True):
        table.add_row(
            _text(str(old["prompt"]), console),
            _text(str(old["response"]), console),
            _score(old),
            _text(str(new["response"]), console),
            _score(new),
        )
    console.print(table)


def show_summary(
    rows: Sequence[Mapping[str, Any]],
    seconds: float | int,
    folder: Path,
    *,
    console: Console | None = None,
) -> None:
    """The last line: what was to rise or fall over the first and last five iterations, time,
    folder."""
    said = [
        f"{label} {first:.3f} -> {last:.3f}{unit}"
        for label, key, unit in SUMMARY
        for first, last in [first_and_last(rows, key)]
        if not math.isnan(first)
    ]
    _print_line(
        f"{'  '.join(said)}  (first 5, last 5 iterations)  time {duration(seconds)}  "
        f"results in {folder}",
        console or shared_console(),
    )


def duration(seconds: float | int) -> str:
    """`1:02:03` or `2:03`; `-` where the time is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _text(text: str, console: Console) -> Text:
    return Text(visible(text, console.encoding))  # a Text is never read as markup


def _score(row: Mapping[str, Any]) -> str:
    return "" if row.get("score") is None else f"{float(row['score']):.3f}"


def _print_line(line: str, console: Console) -> None:
    console.print(_text(line, console), soft_wrap=True)
