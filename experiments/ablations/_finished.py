"""What scripts about an ablation's runs begin with: their flags, and a sweep that is done."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo_jax.errors import PPOJaxError
from ppo_jax.report_cells import Cell, Study, read_study


def read_flags(words: Sequence[str], name: str, doc: str) -> tuple[Path, Path]:
    """(folder of the ablation's runs, folder of its results)."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results") / name)
    args = parser.parse_args(words)
    return args.run_dir / name, args.out


def study_of(root: Path, command: str) -> Study:
    """Raises SystemExit, in one line with the sweep's `command`, where there is none."""
    try:
        return read_study(root)
    except PPOJaxError as error:
        sys.exit(f"{error}; first: {command}")


def need_done(cell: Cell, command: str) -> None:
    """Raises SystemExit, in one line, where the run has not ended well."""
    if not cell.done:
        sys.exit(f"{cell.root}: {cell.state}; go on with: {command}")
