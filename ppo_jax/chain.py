"""A variant of a sweep and the stages that it starts from, each with the flags that make it.

A change goes the way of a flag: `hparams.lam` to `ppo-jax train`, `sft.run.iterations` to that
stage, which is then in a cell of its own, as are the stages that start from it.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ppo_jax.config import Config
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment, all_parts
from ppo_jax.flags import STAGES, read_config, stage, with_cells
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.tuning_run import check_tuned
from ppo_jax.validate import check_config
from ppo_jax.variants import field_of, flag_words, text_of, typed_values

OWN = ("run.seed", "run.cell", "run.dir")  # which run it is, not what it does
Flags = Mapping[str, tuple[str, ...]]  # of each command that trains, in order


class Link(NamedTuple):
    """What all seeds of a run have in common."""

    command: str  # of ppo-jax: sft, reward-model, train
    config: Config
    words: tuple[str, ...]  # the command's flags, but for run.cell
    needs: tuple[str, ...]  # commands of all the stages that it starts from, in order
    label: str = ""  # of a stage that is not as the file has it


def place_of(key: str) -> tuple[str, str]:
    """(command, key of its config) of a change."""
    command, _, own = key.partition(".")
    return (command, own) if command in STAGES and command != "train" else ("train", key)


def chain_of(
    experiment: Experiment, flags: Flags, name: str, changes: Mapping[str, Any]
) -> dict[str, Link]:
    """The variant as `train`, after the file's stages in order. Raises ConfigError on the first
    mistake."""
    of: dict[str, dict[str, Any]] = {command: {} for command in flags}
    for key, value in changes.items():
        command, own = place_of(str(key))
        if command not in of:
            said = f"the file has no {STAGES[command]}"
            raise ConfigError(f"{experiment.path}: {_source(experiment)}: {key}: {said}")
        of[command][own if command != "train" else key] = value
    chain: dict[str, Link] = {}
    for command, words in flags.items():
        own = (link for link in chain.values() if link.label)
        cells = [f"--{link.command}.run.cell={link.config.run.cell}" for link in own]
        chain[command] = _link(experiment, command, (*words, *cells), name, of[command], chain)
    return chain


def _link(
    experiment: Experiment,
    command: str,
    words: tuple[str, ...],
    name: str,
    changes: Mapping[str, Any],
    before: Mapping[str, Link],
) -> Link:
    """The command with its changes."""
    is_stage, source = command != "train", _source(experiment)
    where = STAGES[command] if is_stage and not changes else f"{source}: {name}"
    if is_stage and changes:
        source, where = f"{source}: {command}", f"{where}: {command}"
    source = f"{experiment.path}: {source}"
    _check_keys(experiment, command, changes, words)
    typed = typed_values(stage(experiment, STAGES[command]).base, changes, source)
    own = [word for key, value in typed.items() for word in flag_words(key, value)]
    words = (*words, *own)
    config = _config(experiment, command, words, where)
    for key, value in typed.items():
        if (said := field_of(config, key)) != value:
            raise ConfigError(f"{source}: {key}={value!r}: no flag says that; nearest: {said!r}")
    needs = _all_needs(experiment, command, config, before, where)
    labels = [before[need].label for need in needs if before[need].label]
    label = ",".join([*labels, *(f"{key}={text_of(value)}" for key, value in typed.items())])
    if is_stage and label:
        run = dataclasses.replace(config.run, cell=f"{command}-{label}")
        config = _checked(experiment, command, dataclasses.replace(config, run=run), where)
    return Link(command, config, words, needs, label if is_stage else "")


def _check_keys(
    experiment: Experiment, command: str, changes: Mapping[str, Any], words: tuple[str, ...]
) -> None:
    """ConfigError for what a sweep sets itself, and for what the file and a flag both set."""
    given = {word.split("=")[0] for word in words}
    for key in changes:
        flag = key if command == "train" else f"{command}.{key}"
        if key in OWN:
            said = f"{experiment.path}: {_source(experiment)}: {flag}"
            raise ConfigError(f"{said}: a sweep sets it; nearest: SEEDS")
        if f"--{key}" in given:
            raise ConfigError(f"--{flag}: {experiment.path} varies it; leave the flag out")
    if changes and command != "train" and "--run.cell" in given:
        varied = f"{experiment.path} varies that stage"
        raise ConfigError(f"--{command}.run.cell: {varied}; leave the flag out")


def _source(experiment: Experiment) -> str:
    return next((kind for kind in ("GRID", "RUNS") if kind in experiment.sweep), "SEEDS")


def _config(experiment: Experiment, command: str, words: tuple[str, ...], what: str) -> Config:
    """The config that the command has with these flags."""
    experiment, own = with_cells(experiment, words)
    base = stage(experiment, STAGES[command])
    config = read_config(f"{command} {experiment.name}", own, base)
    return _checked(experiment, command, config, what)


def _checked(experiment: Experiment, command: str, config: Config, what: str) -> Config:
    try:
        check_config(config)
        if command != "train":
            check_tuned(config, command)
    except ConfigError as error:
        raise ConfigError(f"{experiment.path}: {what}: {error}") from None
    return config


def _all_needs(
    experiment: Experiment, command: str, config: Config, before: Mapping[str, Link], what: str
) -> tuple[str, ...]:
    """The stages that a config starts from, and those that these start from, in order."""
    names = [config.model.path, config.model.critic_path]
    if command == "train":
        # A judge is read where there are held-out rows alone.
        unjudged = config.data.eval_path is None
        parts = parse_rewards(experiment.reward) if unjudged else all_parts(experiment)
        names += [part.learned.path for part in parts if part.learned]
    known = {f"@{name}": name for name in STAGES if name != "train"}
    found: set[str] = set()
    for name in [name for name in names if name is not None and name.startswith("@")]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{experiment.path}: {what}: {name}: no stage of an experiment; nearest valid: "
                f"{near}"
            )
        if known[name] not in before:
            stage(experiment, STAGES[known[name]])  # says what the file lacks
            raise ConfigError(f"{experiment.path}: {what}: {name} comes after {command}")
        found |= {known[name], *before[known[name]].needs}
    return tuple(name for name in before if name in found)
