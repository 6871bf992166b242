"""Which run a model's name means: `@sft` of an experiment's own runs, `RUN@best` of its steps."""

import dataclasses
import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ppo_jax import manifest
from ppo_jax.config import Config, RunOptions
from ppo_jax.errors import CheckpointError, ConfigError
from ppo_jax.run_folder import RunFolder, read_status, run_folder, run_path
from ppo_jax.storage import as_path

# Names of the runs that an experiment's stages leave, and the cells those are in unless a config
# says another; "": the config's.
STAGES = {"@sft": "sft", "@reward-model": "reward-model", "@train": ""}
BEST = "best"


class Stages(NamedTuple):
    """Where an experiment's stages have their runs."""

    experiment: str  # its name
    cells: Mapping[str, str] = MappingProxyType({})  # of `@sft`, ...; those of STAGES for the rest
    given: str | None = None  # what a command names it by, a path perhaps; None: its name


def own_cell(run: RunOptions, name: str) -> str:
    """The cell of a stage before PPO, which by default has another than PPO's."""
    return STAGES[name] if run.cell == RunOptions().cell else run.cell


def resolve(path: str | None, config: Config, stages: Stages) -> str | None:
    """The model's path, where it is a stage's name the run of that stage with this root and seed,
    in the stage's own cell.

    An SFT or reward model is taken at its best step, if its steps were measured. ConfigError where
    that run is not there or has not ended.
    """
    if path is None or not path.startswith("@"):
        return path
    run = stage_run(path, config, stages)
    command = _command(path, config, stages)
    if not run.checkpoints.is_dir():
        if STAGES[path] and path not in stages.cells:
            name = STAGES[path].upper().replace("-", "_")
            why = f"and the experiment {stages.experiment} has no {name}"
            raise ConfigError(f"{path}: no run {run.root}, {why}; expected a run folder's path")
        flag = "--run.cell" if path == "@train" else f"--{path[1:]}.run.cell"
        raise ConfigError(
            f"{path}: no run {run.root}; make it with `{command}`, or name another cell: {flag}"
        )
    if not has_ended(run):
        status = read_status(run).get("status", "no status")
        raise ConfigError(f"{path}: {run.root} has not ended ({status}); go on with `{command}`")
    if path != "@train" and manifest.best_step(run.checkpoints) is not None:
        return f"{run.root}@{BEST}"
    return str(run.root)


def _command(name: str, config: Config, stages: Stages) -> str:
    """What makes the run that the stage's name means."""
    experiment = stages.given or stages.experiment
    words = ["ppo-jax", name[1:], experiment, "--run.seed", str(config.run.seed)]
    cell = _cell(name, config, stages)
    words += ["--run.cell", cell] if cell != (STAGES[name] or RunOptions().cell) else []
    words += ["--run.dir", config.run.dir] if config.run.dir != RunOptions().dir else []
    return shlex.join(words)


def _cell(name: str, config: Config, stages: Stages) -> str:
    return stages.cells.get(name, STAGES[name] or config.run.cell)


def stage_run(name: str, config: Config, stages: Stages) -> RunFolder:
    """The run that a stage's name means, there or not. ConfigError where it is no stage's."""
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"model.path={name}: no stage of an experiment; nearest valid: {near}")
    options = dataclasses.replace(config.run, cell=_cell(name, config, stages))
    return run_folder(run_path(options, stages.experiment))


def has_ended(run: RunFolder) -> bool:
    """Whether the run is there, and complete."""
    return run.checkpoints.is_dir() and read_status(run).get("status") == "done"


def run_at(path: str) -> tuple[Path, int | None]:
    """(run folder, step) of RUN@STEP and RUN@best; (path, None) of any other name.

    CheckpointError where the run has no such step.
    """
    name, at, which = path.rpartition("@")
    folder = as_path(name if at else path, "model").expanduser()
    if not at or not (folder / "checkpoints").is_dir():
        return as_path(path, "model").expanduser(), None
    checkpoints = run_folder(folder).checkpoints
    if which == BEST:
        step = manifest.best_step(checkpoints)
        if step is None:
            raise CheckpointError(
                f"{path}: no step of that run was measured (run.keep_best, or -name); nearest: "
                f"{name}@{manifest.latest_step(checkpoints)}"
            )
        return folder, step
    have = manifest.steps(checkpoints)
    if not which.isdecimal() or int(which) not in have:
        there = ", ".join(map(str, have)) or "none"
        raise CheckpointError(f"{path}: no step {which}; there: {there}, or {BEST}")
    return folder, int(which)
