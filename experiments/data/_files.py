"""How the generators of this folder write their files: the same bytes wherever they run."""

import json
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
SPLITS = "sft", "sft_eval", "ppo", "eval"


def lines(rows: Iterable[dict]) -> bytes:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(task: str, splits: dict[str, list[dict]]) -> None:
    """Write `<task>/<split>.jsonl` beside the generators, and say what was written."""
    folder = FOLDER / task
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        data = lines(rows)
        (folder / f"{name}.jsonl").write_bytes(data)
        print(f"{task}/{name}.jsonl: {len(rows)} rows, {len(data)} bytes")
