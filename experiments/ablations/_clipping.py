"""Whether one optimiser step is the same with a clip and without: runs of `clipping`, bit by bit.

    .venv/bin/python experiments/ablations/_clipping.py [--run-dir runs] [--out FOLDER]

Of each seed the parameters in the last checkpoints of `one-step,clip=0.2` and `one-step,clip=inf`,
and the metrics that are not the same number in all their iterations: times, and nothing else.
Written: `identity.md` in the folder of the ablation's results.
"""

import hashlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from _finished import facts_lines, need_done, read_flags, study_of

from ppo_jax.report_cells import Cell
from ppo_jax.restore import restore_params
from ppo_jax.run_folder import run_folder

NAME, TABLE = "clipping", "identity.md"
SWEEP = f"ppo-jax sweep {NAME} --vmap"
PAIR = "one-step,clip=0.2", "one-step,clip=inf"


def digest(cell: Cell) -> str:
    """Of the bytes of all parameters, with their names, shapes and dtypes."""
    found = hashlib.sha256()
    params = restore_params(run_folder(cell.root).checkpoints)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def differing(one: Cell, other: Cell) -> list[str]:
    """Metrics that are not alike, to the last digit of the logs, in every iteration."""
    if len(one.rows) != len(other.rows):
        return [f"{len(one.rows)} and {len(other.rows)} iterations"]
    pairs = list(zip(one.rows, other.rows, strict=True))
    names = dict.fromkeys(name for pair in pairs for row in pair for name in row)
    return [n for n in names if any(mine.get(n) != theirs.get(n) for mine, theirs in pairs)]


def table(cells: dict[tuple[str, int], Cell]) -> str:
    names = ("seed", *PAIR, "equal", "metrics that differ")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for seed in sorted({seed for _, seed in cells}):
        pair = [cells[variant, seed] for variant in PAIR]
        digests = [digest(cell) for cell in pair]
        same = "yes, bit by bit" if len(set(digests)) == 1 else "NO"
        others = ", ".join(differing(*pair)) or "none"
        row = [str(seed), *(found[:16] for found in digests), same, others]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n\nSHA-256 of all parameters after the last iteration.\n"


def main(words: Sequence[str]) -> None:
    root, out = read_flags(words, NAME, __doc__)
    study = study_of(root, SWEEP)
    cells = {(cell.variant, cell.seed): cell for cell in study.cells if cell.variant in PAIR}
    for cell in cells.values():
        need_done(cell, SWEEP)
    own = study._replace(cells=tuple(cells.values()))
    text = table(cells) + "\n" + facts_lines(own)
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE).write_text(text, encoding="utf-8")
    print(text + str(out / TABLE))


if __name__ == "__main__":
    main(sys.argv[1:])
