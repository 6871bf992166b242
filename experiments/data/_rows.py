"""Rows for the files of a task, none of which meets another in its prompt or its content."""

import json
import random
from collections.abc import Callable

Row = dict[str, object]
Draw = Callable[[random.Random], tuple[str, Row] | None]


def disjoint(draw: Draw, sizes: dict[str, int], seed: str) -> dict[str, list[Row]]:
    """`sizes[name]` rows a file, no two with one prompt or one content, in one file or in two.

    `draw(rng)` gives (content, row), or None for a draw that is not wanted. The content is what
    must not be met again in other words: the report itself, whatever is asked of it. Raises
    ValueError where a hundred draws a row do not give as many.
    """
    rng, total = random.Random(seed), sum(sizes.values())
    seen: set[str] = set()
    rows: list[Row] = []
    for _ in range(100 * total):
        if len(rows) == total:
            break
        drawn = draw(rng)
        if drawn is None:
            continue
        content, row = drawn
        keys = {f"content {content}", f"prompt {json.dumps(row['prompt'])}"}
        if keys & seen:
            continue
        seen |= keys
        rows.append(row)
    if len(rows) < total:
        raise ValueError(f"{seed}: {len(rows)} rows of {total}; there is not enough to draw from")
    rng.shuffle(rows)  # what is drawn last is what is rare
    files = {}
    for name, size in sizes.items():
        files[name], rows = rows[:size], rows[size:]
    return files


def read_columns(files: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The files with the columns that each is read for: responses for SFT, two of them in pairs."""
    taken = {"sft": ("response",), "pairs": ("chosen", "rejected")}
    names = lambda file: ("prompt", *taken.get(file.removesuffix("_eval"), ()))
    return {
        file: [{column: row[column] for column in names(file)} for row in rows]
        for file, rows in files.items()
    }


def answered(files: dict[str, list[Row]], column: str = "reference") -> dict[str, list[Row]]:
    """The files with this column called `response`, and no others, where SFT is to learn it."""
    shown = lambda row: {"prompt": row["prompt"], "response": row[column]}
    return {
        name: [shown(row) for row in rows] if name.startswith("sft") else rows
        for name, rows in files.items()
    }
