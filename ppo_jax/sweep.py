"""`ppo-jax sweep EXPERIMENT`: the cells of a GRID or of RUNS with every seed, each the run that it
would be by itself: done ones are skipped, half-done ones go on, changed ones are refused.

    <run.dir>/<experiment>/sweep.json                      the cells, for `ppo-jax report`
    <run.dir>/<experiment>/<name>-<hash>/seed<k>/          a run folder each
    <run.dir>/<experiment>/sft/seed<k>/                    what cells of that seed start from

With `--vmap` cells that differ in seeds and hyper-parameters alone share a program.
"""

import difflib
import fnmatch
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax import vmapped
from ppo_jax.arguments import SweepArgs, TrainArgs
from ppo_jax.errors import CheckpointError, ConfigError, StorageError
from ppo_jax.experiment import Experiment
from ppo_jax.flags import with_cells, with_models
from ppo_jax.grid import Cell, Grid, read_grid
from ppo_jax.jobs import Ended, Job, run_jobs
from ppo_jax.preemption import Preemption, watch
from ppo_jax.run_folder import SWEEP, read_status, run_folder, run_path
from ppo_jax.standing import Standing, standing
from ppo_jax.storage import as_path, on_gcs, write_atomic
from ppo_jax.text import visible
from ppo_jax.vmapped_train import train_together


class Found(NamedTuple):
    """A cell, and what there is of it."""

    index: int | None  # of a cell; None of a stage
    cell: Cell
    standing: Standing

    @property
    def name(self) -> str:
        return self.cell.dir


def sweep(
    experiment: Experiment, words: Sequence[str], args: SweepArgs, switches: TrainArgs
) -> int:
    """List the cells, or run those asked for that are not done; the exit code of the first that
    fails, else 0.

    `words` are flags for every cell. Raises ConfigError on a mistake in the file or in what is
    asked for, CheckpointError where a cell was begun with another configuration, code or data.
    """
    grid = read_grid(experiment, words)
    look = lambda index, cell: Found(
        index, cell, standing(experiment, cell, allow_change=switches.allow_config_change)
    )
    cells = [look(index, grid.cells[index]) for index in _chosen(grid, args)]
    if args.list:
        stages = [look(None, stage) for stage in _before(grid, [one.cell for one in cells])]
        print("\n".join(_table([*stages, *cells])))
        return 0
    left = [one for one in cells if one.standing.state != "done"]
    stages = [look(None, stage) for stage in _before(grid, [one.cell for one in left])]
    _refuse_changed([*stages, *left], grid)
    stages = [one for one in stages if one.standing.state != "done"]
    root = _write_cells(grid, words)
    if args.index is not None and stages and on_gcs(root):
        stage = stages[0].cell
        command = shlex.join(("ppo-jax", stage.command, experiment.command_name, *stage.words))
        raise ConfigError(f"--index: {root} has no locks; before the machines begin: {command}")
    print(f"{root}: {len(cells)} cells, {len(cells) - len(left)} of them done", flush=True)
    groups = _groups(left) if args.vmap else [[one] for one in left]
    if len(groups) == 1 and len(left) > 1 and not stages:
        return _run_together(grid.experiment, left, switches)
    jobs = [_job(experiment, one.cell, stages, switches) for one in stages]
    jobs += [_group_job(experiment, group, stages, words, switches) for group in groups]
    ended = run_jobs(jobs, args.jobs)
    print(
        "\n".join(_summary(experiment, [*stages, *left], _each(experiment, groups, ended))),
        flush=True,
    )
    return ended.code


def _groups(cells: Sequence[Found]) -> list[list[Found]]:
    """The cells that share a program, those of each together."""
    shapes: dict[Any, list[Found]] = {}
    for one in cells:
        shape = vmapped.shape_of(one.cell.config), one.cell.needs
        shapes.setdefault(shape, []).append(one)
    return list(shapes.values())


def _run_together(experiment: Experiment, cells: Sequence[Found], switches: TrainArgs) -> int:
    """The cells in this process, as one program; the exit code."""
    preemption = Preemption()
    vmapped.use_cores()
    with watch(preemption):
        experiment, _ = with_cells(experiment, cells[0].cell.words)  # the same of all
        configs = [with_models(one.cell.config, experiment) for one in cells]
        failed = train_together(configs, experiment, switches, preemption)
    said = f"{len(cells) - len(failed)} runs done, {len(failed)} failed"
    print("\n".join([f"{experiment.name}: {said}", *map(visible, failed)]), flush=True)
    return next((error.exit_code for error in failed.values()), 0)


def _chosen(grid: Grid, args: SweepArgs) -> list[int]:
    """Indices of the cells that are asked for."""
    every = range(len(grid.cells))
    if args.index is not None:
        if args.vmap:
            raise ConfigError("--index: beside --vmap; expected one of the two")
        if args.only:
            raise ConfigError("--index: beside --only; expected one of the two")
        if args.index not in every:
            valid = f"must be 0 to {len(every) - 1}; nearest valid: {len(every) - 1}"
            raise ConfigError(f"--index={args.index}: {valid}")
        return [args.index]
    names = [(c.name, c.config.run.cell, f"{c.name}/seed{c.seed}", c.dir) for c in grid.cells]
    for pattern in args.only:
        if not any(fnmatch.filter(own, pattern) for own in names):
            known = list(dict.fromkeys(cell.name for cell in grid.cells))
            near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"--only {pattern}: no such cell; nearest valid: {near}")
    is_asked = lambda own: not args.only or any(fnmatch.filter(own, p) for p in args.only)
    return [index for index in every if is_asked(names[index])]


def _before(grid: Grid, cells: Sequence[Cell]) -> list[Cell]:
    """The stages that cells start from."""
    needed = {folder for cell in cells for folder in cell.after}
    return [stage for stage in grid.stages if stage.dir in needed]


def _refuse_changed(found: Sequence[Found], grid: Grid) -> None:
    changed = [one for one in found if one.standing.state == "changed"]
    if changed:
        others = f" (and {len(changed) - 1} more: --list)" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{grid.experiment.name}: {changed[0].name}{others} is not what was begun: "
            f"{changed[0].standing.said}; choose another --run.dir, remove the old one, or give "
            "--allow_config_change"
        )


def _job(experiment: Experiment, cell: Cell, stages: Sequence[Found], switches: TrainArgs) -> Job:
    """The cell's command, after what is yet to be made of its stages."""
    on = [f"--{name}" for name, is_on in vars(switches).items() if is_on]
    before = [stage.name for stage in stages if stage.name in cell.after]
    is_done = lambda: standing(experiment, cell).state == "done"
    shared = is_done if cell.command != "train" else None  # cells on other machines need it as well
    words = (cell.command, experiment.command_name, *cell.words, *on)
    return Job(cell.dir, words, tuple(before), shared)


def _group_job(
    experiment: Experiment,
    group: Sequence[Found],
    stages: Sequence[Found],
    words: Sequence[str],
    switches: TrainArgs,
) -> Job:
    """The command of a cell; of several, the sweep of these alone."""
    jobs = [_job(experiment, one.cell, stages, switches) for one in group]
    if len(jobs) == 1:
        return jobs[0]
    on = [f"--{name}" for name, is_on in vars(switches).items() if is_on]
    names = [one.name for one in group]
    command = ("sweep", experiment.command_name, *words, *on, "--vmap", "--only", *names)
    after = tuple(dict.fromkeys(name for job in jobs for name in job.after))
    return Job(_name_of(group), command, after)


def _name_of(group: Sequence[Found]) -> str:
    return group[0].name if len(group) == 1 else f"{len(group)} cells from {group[0].name} on"


def _write_cells(grid: Grid, words: Sequence[str]) -> Path:
    """`sweep.json` in the folder of the experiment's runs, which is returned."""
    root = as_path(grid.cells[0].config.run.dir, "run.dir").expanduser() / grid.experiment.name
    cells = [
        {
            "name": cell.name,
            "hash": cell.hash,
            "changes": cell.changes,
            "seed": cell.seed,
            "dir": cell.dir,
        }
        for cell in grid.cells
    ]
    content = {
        "experiment": grid.experiment.name,
        "path": str(grid.experiment.path),
        "words": _without_root(words),
        "metrics": grid.metrics,
        "windows": grid.windows,
        "pairs": grid.pairs,
        "base": grid.base,
        "seeds": grid.seeds,
        "cells": cells,
        "doc": grid.experiment.doc,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{root}: cannot be made ({error.strerror})") from None
    try:
        write_atomic(root / SWEEP, text)
    except StorageError:  # another machine may have written the same, as a process of one number
        if _read(root / SWEEP) != text:
            raise
    return root


def _without_root(words: Sequence[str]) -> list[str]:
    """Flags but for --run.dir, which a report is given by itself."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--run.dir":
            next(rest, None)
        elif not word.startswith("--run.dir="):
            kept.append(word)
    return kept


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _table(found: Sequence[Found]) -> list[str]:
    """A line a run: its index, cell, seed, hash and status."""
    head = ("index", "cell", "seed", "hash", "status")
    rows = [
        (
            "-" if one.index is None else str(one.index),
            one.cell.name,
            str(one.cell.seed),
            one.cell.hash or "-",
            visible(one.standing.line),
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    pad = (str.rjust, str.ljust, str.rjust, str.ljust, lambda text, width: text)
    return [
        "  ".join(put(text, width) for put, text, width in zip(pad, row, widths, strict=True))
        for row in (head, *rows)
    ]


def _each(
    experiment: Experiment, groups: Sequence[Sequence[Found]], ended: Ended
) -> dict[str, int]:
    """Exit codes by run; of one in a group, that of the group unless the run itself is done."""
    codes = dict(ended.codes)
    for group in groups:
        code = codes.pop(_name_of(group), None)
        if code is None:
            continue
        for one in group:
            folder = run_folder(run_path(one.cell.config.run, experiment.name))
            codes[one.name] = 0 if read_status(folder).get("status") == "done" else code
    return codes


def _summary(experiment: Experiment, asked: Sequence[Found], codes: Mapping[str, int]) -> list[str]:
    """What became of the runs, and why of those that failed."""
    names = [one.name for one in asked]
    failed = [one for one in asked if codes.get(one.name)]
    left = [name for name in names if name not in codes]
    done = len(names) - len(failed) - len(left)
    lines = [f"{experiment.name}: {done} runs done, {len(failed)} failed, {len(left)} not begun"]
    for one in failed:
        folder = run_folder(run_path(one.cell.config.run, experiment.name))
        said = f" ({error})" if (error := read_status(folder).get("error")) else ""
        lines.append(visible(f"  {one.name}: exit code {codes[one.name]}{said}"))
    return lines
