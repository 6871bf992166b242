"""Flags to a checked configuration, of an experiment's stage or of a command's own arguments."""

import dataclasses
from typing import TypeVar

from ppo_jax import arguments
from ppo_jax.errors import ConfigError

# Command -> what of an experiment file it trains.
STAGES = {"train": "BASE", "sft": "SFT", "reward-model": "REWARD_MODEL"}

# What takes seconds to import (jax, transformers) is imported by whoever needs it.
Parsed = TypeVar("Parsed")


def first_experiment(command: str, words: list[str]):
    """The experiment that the command's first word names."""
    from ppo_jax.experiment import list_experiments, load_experiment

    if not words or words[0].startswith("-"):
        names = ", ".join(list_experiments()) or "none found"
        got = f", not {words[0]}" if words else ""
        raise ConfigError(
            f"{command}: the experiment comes first{got}: ppo-jax {command} EXPERIMENT "
            f"[--section.key VALUE ...] (experiments: {names})"
        )
    return load_experiment(words[0])


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
    if base != "BASE" and config.run.cell == type(config.run)().cell:  # PPO has that one
        cell = next(command for command, of in STAGES.items() if of == base)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, cell=cell))
    return experiment._replace(base=config)


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
    config = read_config(command, words, experiment)
    paths = {key: getattr(config.model, key) for key in ("path", "critic_path")}
    if not any(path is not None and path.startswith("@") for path in paths.values()):
        return config
    from ppo_jax.config import replace
    from ppo_jax.stages import resolve

    found = {key: resolve(path, config, experiment.name) for key, path in paths.items()}
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
