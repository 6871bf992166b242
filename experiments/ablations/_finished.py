"""What scripts about an ablation's runs begin with: their flags, and a sweep that is done."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ppo_jax.errors import PPOJaxError
from ppo_jax.report_cells import Cell, Study, read_study
from ppo_jax.report_tables import facts_of


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


def facts_lines(study: Study, more: Mapping[str, str] | None = None) -> str:
    """Commit, device and versions of the runs, and more facts, as a list in Markdown."""
    facts = {name: "; ".join(values) for name, values in facts_of(study).items()} | (more or {})
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def need_done(cell: Cell, command: str) -> None:
    """Raises SystemExit, in one line, where the run has not ended well."""
    if not cell.done:
        sys.exit(f"{cell.root}: {cell.state}; go on with: {command}")
