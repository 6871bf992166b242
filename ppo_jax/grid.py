"""The cells of a sweep: every variant of an experiment with every seed, and the stages before them.

A value of GRID or RUNS goes the way of a flag: a cell is `ppo-jax train` with these flags. What no
flag could say is refused, as a wrong name is, before anything is loaded.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from ppo_jax.chain import Link, chain_of, place_of
from ppo_jax.config import Config
from ppo_jax.config_io import diff, to_dict
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.flags import STAGES, with_cells
from ppo_jax.pipeline import check_roots, commands_of
from ppo_jax.resume import FREE
from ppo_jax.variants import named_changes, read_metrics, read_pairs, read_seeds, read_windows

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
    needs: tuple[str, ...]  # cells of the stages that come before it

    @property
    def dir(self) -> str:
        """Its run folder, below the experiment's."""
        return f"{self.config.run.cell}/seed{self.seed}"

    @property
    def after(self) -> tuple[str, ...]:
        """Run folders of the stages that come before it, as `dir`."""
        return tuple(f"{cell}/seed{self.seed}" for cell in self.needs)


class Grid(NamedTuple):
    """All that a sweep consists of."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    stages: tuple[Cell, ...]  # of the cells; what one starts from stands before it
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    windows: dict[str, tuple[int, int]]  # of metrics that have their own
    pairs: list[tuple[str, str]]  # variants whose difference is shown
    base: str | None  # the variant that changes nothing of BASE


def read_grid(experiment: Experiment, words: Sequence[str] = ()) -> Grid:
    """The sweep of an experiment file. `words` are flags for all its cells, and `--sft.key value`
    those of a stage, as `ppo-jax pipeline` takes them. Raises ConfigError on the first mistake."""
    flags = _flags(experiment, words)
    seeds, windows = read_seeds(experiment), read_windows(experiment)
    cells: list[Cell] = []
    base: str | None = None
    known: dict[str, Any] = {}
    stages: dict[tuple[int, str], list[Cell]] = {}
    variants = named_changes(experiment)
    pairs = read_pairs(experiment, variants)
    for name, changes in variants.items():
        chain = chain_of(experiment, flags, name, changes)
        variant = chain["train"]
        for command in variant.needs:
            key = list(chain).index(command), chain[command].config.run.cell
            made = [_stage(chain, command, seed) for seed in seeds]
            if stages.setdefault(key, made) != made:
                raise ConfigError(
                    f"{experiment.path}: two stages are called {key[1]}; expected values that "
                    "differ in letters, digits or ._=,+-"
                )
        configs = {command: chain[command].config for command in (*variant.needs, "train")}
        _check_other(experiment, known, name, configs)
        known[name] = configs
        check_roots(configs, ["dir"])
        hashed = _hash(configs)
        shown = {key: _shown(chain, key) for key in changes}
        if base is None and _changes_nothing(experiment.base, shown):
            base = name
        run = functools.partial(_cell, chain, "train", f"{name}-{hashed}", name, hashed, shown)
        cells += map(run, seeds)
    before = [cell for key in sorted(stages, key=itemgetter(0)) for cell in stages[key]]
    experiment, _ = with_cells(experiment, flags["train"])
    metrics = read_metrics(experiment)
    return Grid(experiment, tuple(cells), tuple(before), seeds, metrics, windows, pairs, base)


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


def _stage(chain: Mapping[str, Link], command: str, seed: int) -> Cell:
    cell = chain[command].config.run.cell
    return _cell(chain, command, cell, cell, "", {}, seed)


def _cell(
    chain: Mapping[str, Link],
    command: str,
    folder: str,
    name: str,
    hashed: str,
    changes: dict[str, Any],
    seed: int,
) -> Cell:
    link = chain[command]
    run = dataclasses.replace(link.config.run, cell=folder, seed=seed)
    words = (*link.words, f"--run.cell={folder}", f"--run.seed={seed}")
    config = dataclasses.replace(link.config, run=run)
    needs = tuple(chain[need].config.run.cell for need in link.needs)
    return Cell(command, name, hashed, changes, seed, config, words, needs)


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


def _check_other(
    experiment: Experiment, known: Mapping[str, Any], name: str, configs: Mapping[str, Config]
) -> None:
    """ConfigError where a variant that is known is the same run."""
    for other, theirs in known.items():
        if theirs == configs:
            raise ConfigError(f"{experiment.path}: {other} and {name} are the same; leave one out")


def _changes_nothing(base: Config, shown: Mapping[str, Any]) -> bool:
    inside = lambda node, part: node.get(part) if isinstance(node, dict) else None
    own = to_dict(base)
    return all(functools.reduce(inside, key.split("."), own) == shown[key] for key in shown)


def _shown(chain: Mapping[str, Link], key: str) -> Any:
    """What a change has come to, as JSON holds it."""
    command, own = place_of(key)
    return functools.reduce(dict.__getitem__, own.split("."), to_dict(chain[command].config))
