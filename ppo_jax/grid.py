"""The cells of a sweep: every variant of an experiment with every seed, and the stages before them.

A value of GRID or RUNS goes the way of a flag: a cell is `ppo-jax train` with these flags. What no
flag could say is refused, as a wrong name is, before anything is loaded.
"""

import dataclasses
import difflib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppo_jax.config import Config
from ppo_jax.config_io import diff, to_dict
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment, all_parts
from ppo_jax.flags import STAGES, read_config, stage, with_cells
from ppo_jax.pipeline import check_roots, commands_of
from ppo_jax.resume import FREE
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.tuning_run import check_tuned
from ppo_jax.validate import check_config
from ppo_jax.variants import (
    field_of,
    flag_words,
    named_changes,
    read_metrics,
    read_seeds,
    typed_values,
)

OWN = ("run.seed", "run.cell", "run.dir")  # which run it is, not what it does
DIGITS = 8  # of a hash
# What no result hangs on beside run.* and parallel.*; the content of data.path is compared.
IDLE = FREE | {"reward.workers", "reward.row_timeout"}


class Cell(NamedTuple):
    """One run of a sweep: a variant with a seed, or a stage that others of that seed start from."""

    command: str  # of ppo-jax: train; sft, reward-model
    name: str  # of the variant: lam=0.95
    hash: str  # of its configuration, and of its stages'; "" of a stage
    changes: dict[str, Any]  # dotted key -> value, as JSON holds it
    seed: int
    config: Config  # with run.cell and run.seed
    words: tuple[str, ...]  # the command's flags
    needs: tuple[str, ...]  # commands of the stages that come before it

    @property
    def dir(self) -> str:
        """Its run folder, below the experiment's."""
        return f"{self.config.run.cell}/seed{self.seed}"


class Grid(NamedTuple):
    """All that a sweep consists of."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    stages: tuple[Cell, ...]  # of the cells; what one starts from stands before it
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]


class Variant(NamedTuple):
    """What all seeds of a run have in common."""

    command: str
    config: Config
    words: tuple[str, ...]
    needs: tuple[str, ...]


def read_grid(experiment: Experiment, words: Sequence[str] = ()) -> Grid:
    """The sweep of an experiment file. `words` are flags for all its cells, and `--sft.key value`
    those of a stage, as `ppo-jax pipeline` takes them. Raises ConfigError on the first mistake."""
    flags = _flags(experiment, words)
    seeds, metrics = read_seeds(experiment), read_metrics(experiment)
    stages = {
        command: _variant(experiment, command, flags[command], STAGES[command])
        for command in flags
        if command != "train"
    }
    cells: list[Cell] = []
    for name, changes in named_changes(experiment).items():
        variant = _changed(experiment, flags["train"], name, changes)
        variant = variant._replace(needs=_all_needs(experiment, variant, stages))
        configs = {need: stages[need].config for need in variant.needs}
        check_roots({**configs, "train": variant.config}, ["dir"])
        hashed = _hash({"train": variant.config, **configs})
        shown = {key: _at(to_dict(variant.config), key) for key in changes}
        cells += [_cell(variant, f"{name}-{hashed}", name, hashed, shown, seed) for seed in seeds]
    used = [command for command in stages if any(command in cell.needs for cell in cells)]
    before = [
        _cell(stages[command], stages[command].config.run.cell, command, "", {}, seed)
        for command in used
        for seed in seeds
    ]
    experiment, _ = with_cells(experiment, flags["train"])
    return Grid(experiment, tuple(cells), tuple(before), seeds, metrics)


def _flags(experiment: Experiment, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The flags of each command that trains."""
    for word in words:
        key = word.split("=")[0]
        if key.startswith("--eval."):
            raise ConfigError(f"{key}: a sweep does not evaluate; nearest: ppo-jax eval")
        if key in ("--run.seed", "--run.cell"):
            raise ConfigError(f"{key}: a sweep sets it; nearest: SEEDS of the file, --run.dir")
    commands = commands_of(experiment, [experiment.name, *words])
    return {command: tuple(flags) for command, _, *flags in commands if command in STAGES}


def _changed(
    experiment: Experiment, words: tuple[str, ...], name: str, changes: Mapping[str, Any]
) -> Variant:
    """The experiment with these changes."""
    source = next((kind for kind in ("GRID", "RUNS") if kind in experiment.sweep), "SEEDS")
    given = {word.split("=")[0] for word in words}
    for key in changes:
        if key in OWN:
            raise ConfigError(
                f"{experiment.path}: {source}: {key}: a sweep sets it; nearest: SEEDS"
            )
        if f"--{key}" in given:
            raise ConfigError(f"--{key}: {experiment.path} varies it; leave the flag out")
    typed = typed_values(experiment.base, changes, f"{experiment.path}: {source}")
    own = [word for key, value in typed.items() for word in flag_words(key, value)]
    variant = _variant(experiment, "train", (*words, *own), f"{source}: {name}")
    for key, value in typed.items():
        if field_of(variant.config, key) != value:
            where = f"{experiment.path}: {source}: {key}={value!r}"
            raise ConfigError(
                f"{where}: no flag says that; nearest: {field_of(variant.config, key)!r}"
            )
    return variant


def _variant(experiment: Experiment, command: str, words: tuple[str, ...], what: str) -> Variant:
    """The config that the command has with these flags, checked."""
    experiment, own = with_cells(experiment, words)
    base = stage(experiment, STAGES[command])
    config = read_config(f"{command} {experiment.name}", own, base)
    where = f"{experiment.path}: {what}"
    try:
        check_config(config)
        if command != "train":
            check_tuned(config, command)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    names, held_out = [config.model.path, config.model.critic_path], config.data.eval_path
    if command == "train":
        # A judge is read where there are held-out rows alone.
        parts = parse_rewards(experiment.reward) if held_out is None else all_parts(experiment)
        names += [part.learned.path for part in parts if part.learned]
    runs = [name for name in names if name is not None and name.startswith("@")]
    known = {f"@{name}": name for name in STAGES if name != "train"}
    for name in runs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: {name}: no stage of an experiment; nearest valid: {near}")
    return Variant(command, config, words, tuple(dict.fromkeys(known[name] for name in runs)))


def _all_needs(
    experiment: Experiment, variant: Variant, stages: Mapping[str, Variant]
) -> tuple[str, ...]:
    """The stages that a variant starts from, and those that these start from, in order."""
    found: set[str] = set()
    waiting = list(variant.needs)
    while waiting:
        command = waiting.pop()
        if command not in stages:
            stage(experiment, STAGES[command])  # says what the file lacks
        if command not in found:
            found.add(command)
            waiting += stages[command].needs
    return tuple(command for command in stages if command in found)


def _cell(
    variant: Variant, folder: str, name: str, hashed: str, changes: dict[str, Any], seed: int
) -> Cell:
    run = dataclasses.replace(variant.config.run, cell=folder, seed=seed)
    words = (*variant.words, f"--run.cell={folder}", f"--run.seed={seed}")
    config = dataclasses.replace(variant.config, run=run)
    return Cell(variant.command, name, hashed, changes, seed, config, words, variant.needs)


def _hash(configs: Mapping[str, Config]) -> str:
    """Of all that a result hangs on and that is not as by default, so that an option that comes to
    be changes no hash."""
    lines = [
        f"{command} {line.split(':')[0]}: {line.rpartition(' -> ')[2]}"
        for command, config in configs.items()
        for line in diff(Config(), config)
        if line.split(":")[0] not in IDLE and not line.startswith(("run.", "parallel."))
    ]
    # The run that a cell begins from may have been made by other flags than these.
    lines += [
        f"{command} run.cell: {config.run.cell}"
        for command, config in configs.items()
        if command != "train" and config.run.cell != command
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:DIGITS]


def _at(data: dict[str, Any], key: str) -> Any:
    return functools.reduce(dict.__getitem__, key.split("."), data)
