"""One table of all results, from every `summary.csv`, between two lines of a Markdown file."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ppo_jax import console
from ppo_jax.arguments import IndexArgs
from ppo_jax.errors import ConfigError, DataError, StorageError
from ppo_jax.report_tables import SUMMARY, md
from ppo_jax.storage import write_atomic

BEGIN = "<!-- results: made by `ppo-jax report --index` -->"
END = "<!-- end of results -->"
NAMES = ("experiment", "metric", "variant", "mean (95 % CI)", "seeds", "difference (95 % CI)")


def run_index(args: IndexArgs) -> None:
    """Renew the table between BEGIN and END in `args.readme`; nothing else in it changes.

    Raises ConfigError where the file lacks the two lines, DataError for a `summary.csv` that is
    none, StorageError.
    """
    readme, results = Path(args.readme), Path(args.results)
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{readme}: cannot be read ({error.strerror})") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{readme}: expected the lines {BEGIN} and, below it, {END}")
    paths = sorted(results.glob("*/summary.csv"))
    lines = index_lines({path.parent.name: path for path in paths}, _link(results, readme))
    write_atomic(readme, "\n".join([before + BEGIN, *lines, END + after]))
    console.say(f"{readme}: {len(paths)} results")


def index_lines(summaries: Mapping[str, Path], link: str) -> list[str]:
    """The table's lines: a row a variant, by experiment, of its first metric; none where there are
    none."""
    rows = []
    for name, path in summaries.items():
        found = read_summary(path)
        for row in (row for row in found if row["metric"] == found[0]["metric"]):
            first = f"[{md(name)}]({link}{quote(name)}/table.md)"
            mean = _with_interval(row, "mean", "low", "high")
            delta = _with_interval(row, "delta", "delta_low", "delta_high")
            if delta:
                delta += f" to {md(row['base'])}"
            cells = [first, md(row["metric"]), md(row["variant"]), mean, md(row["n"]), delta]
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ["", "(none yet)", ""]
    return ["", f"| {' | '.join(NAMES)} |", "|" + "---|" * len(NAMES), *rows, ""]


def read_summary(path: Path) -> list[dict[str, str]]:
    """The rows of a `summary.csv`; DataError where its columns are others."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if tuple(reader.fieldnames or ()) != tuple(SUMMARY) or any(None in r.values() for r in rows):
        raise DataError(f"{path}: expected the columns {', '.join(SUMMARY)}")
    return rows


def _with_interval(row: Mapping[str, str], mean: str, low: str, high: str) -> str:
    if not row[mean]:
        return ""
    interval = f" ({_short(row[low])} to {_short(row[high])})" if row[low] else ""
    return f"{_short(row[mean])}{interval}"


def _short(number: str) -> str:
    """With four digits."""
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return md(number)


def _link(results: Path, readme: Path) -> str:
    """From the file to the folder of results."""
    return f"{Path(os.path.relpath(results, readme.parent)).as_posix()}/"
