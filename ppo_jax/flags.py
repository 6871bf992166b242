"""Flags to a checked configuration, of an experiment's stage or of a command's own arguments."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from ppo_jax import arguments
from ppo_jax.errors import ConfigError

# Command -> what of an experiment file it trains.
STAGES = {"train": "BASE", "sft": "SFT", "reward-model": "REWARD_MODEL"}
BEFORE_PPO = ("sft", "reward-model")  # which read neither BASE nor REWARD
CELLS = {f"--{command}.run.cell": command for command in BEFORE_PPO}  # flags of later stages

# What takes seconds to import (jax, transformers) is imported by whoever needs it.
Parsed = TypeVar("Parsed")


def first_experiment(command: str, words: list[str]):
    """The experiment that the command's first word names."""
    from ppo_jax.experiment import NEEDED, list_experiments, load_experiment

    if not words or words[0].startswith("-"):
        names = ", ".join(list_experiments()) or "none found"
        got = f", not {words[0]}" if words else ""
        raise ConfigError(
            f"{command}: the experiment comes first{got}: ppo-jax {command} EXPERIMENT "
            f"[--section.key VALUE ...] (experiments: {names})"
        )
    return load_experiment(words[0], needs=() if command in BEFORE_PPO else tuple(NEEDED))


def listed(folder: str = "experiments") -> str:
    """A line an experiment in `folder`: its name, and what it is."""
    from ppo_jax.experiment import list_experiments, summary

    lines = (f"  {name:<16} {summary(path)}" for name, path in list_experiments(folder).items())
    return "\n".join(lines) or "  (none found)"


def stage(experiment, base: str):
    """The experiment with that one of its configs as its BASE."""
    configs = {"SFT": experiment.sft, "REWARD_MODEL": experiment.reward_model}
    config = {"BASE": experiment.base, **configs}[base]
    if config is None:
        raise ConfigError(f"{experiment.path}: {base} is missing; expected {base} = a Config")
    if config.model.trust_remote_code:
        raise ConfigError(
            f"{experiment.path}: {base}: model.trust_remote_code=True: running a model's own code "
            "is asked for on the command line alone: --model.trust_remote_code True"
        )
    command = next(command for command, of in STAGES.items() if of == base)
    cell = experiment.stages.cells.get(f"@{command}", config.run.cell)
    run = dataclasses.replace(config.run, cell=cell)
    return experiment._replace(base=dataclasses.replace(config, run=run))


def with_cells(experiment, words: Sequence[str]):
    """(the experiment, its stages in the cells that `--sft.run.cell NAME` says; other words)"""
    left, rest = list(words), []
    while left:
        word = left.pop(0)
        flag, is_whole, cell = word.partition("=")
        if flag not in CELLS:
            rest.append(word)
            continue
        if not is_whole and (not left or left[0].startswith("--")):
            raise ConfigError(f"{flag}: a value is missing")
        experiment = _in_cell(experiment, CELLS[flag], cell if is_whole else left.pop(0))
    return experiment, rest


def _in_cell(experiment, command: str, cell: str):
    """The experiment with this stage in that cell."""
    flag, name = f"--{command}.run.cell", STAGES[command]
    config = getattr(experiment, name.lower())
    if config is None:
        raise ConfigError(f"{flag}={cell}: {experiment.path} has no {name}")
    if cell == type(config.run)().cell:  # which a stage's config has where it says nothing
        raise ConfigError(f"{flag}={cell}: the cell of PPO's own runs; nearest valid: {command}")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, cell=cell))
    return experiment._replace(**{name.lower(): config})


def parse(cls: type[Parsed], command: str, words: list[str], **options) -> Parsed:
    """Flags to a dataclass; a flag that is unknown or of the wrong type raises SystemExit(2)."""
    import tyro

    return tyro.cli(
        cls,
        prog=f"ppo-jax {command}",
        args=words,
        # Bools are written out, as in a sweep; a None stays a value, not a subcommand.
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        use_underscores=True,
        **options,
    )


def parse_config(command: str, words: list[str], experiment):
    """The experiment's BASE with the flags' values in it, models of other stages found."""
    return with_models(read_config(command, words, experiment), experiment)


def with_models(config, experiment):
    """The config with the runs of the experiment's stages in the place of `@sft` and the like."""
    paths = {key: getattr(config.model, key) for key in ("path", "critic_path")}
    if not any(path is not None and path.startswith("@") for path in paths.values()):
        return config
    from ppo_jax.config import replace
    from ppo_jax.stages import resolve

    found = {key: resolve(path, config, experiment.stages) for key, path in paths.items()}
    return replace(config, **{f"model.{key}": path for key, path in found.items()})


def read_config(command: str, words: list[str], experiment):
    """As `parse_config`, with `@sft` and the like as they stand."""
    base = experiment.base
    config = parse(type(base), command, words, default=base, description=experiment.doc)
    if base.model.path is None and config.model.path is not None:
        # The file's shape is that of its random model; another one brings its own.
        if config.model.shape == base.model.shape:
            model = dataclasses.replace(config.model, shape=type(base.model.shape)())
            config = dataclasses.replace(config, model=model)
    return config


def check(args) -> None:
    """ConfigError on an argument outside its range."""
    from ppo_jax.ranges import check_ranges

    check_ranges(
        args, {key: arguments.RANGES[key] for key in vars(args) if key in arguments.RANGES}
    )
