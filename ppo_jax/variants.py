"""What an experiment file names to be compared: GRID or RUNS, SEEDS, METRICS, WINDOWS, PAIRS.

    GRID = {"hparams.lam": (0.0, 0.95, 1.0), "ppo.epochs": (1, 4)}  every combination of the values
    RUNS = {"no-clip": {"hparams.clip_low": inf}, "as-it-is": {}}   or named ones; a key of an
                                       earlier stage begins with it: "sft.run.iterations"
    SEEDS = range(5)                   else BASE's own
    METRICS = ("eval/scores",)         what `ppo-jax report` shows; else the scores in training
    WINDOWS = {"objective/kl": (0, 50)}  iterations whose mean it shows of one; else the last ones
    PAIRS = [("no-clip", "as-it-is")]  variants whose difference it shows, beside those to the base

Each mistake is one line that names the file, the key, what is expected and the nearest that is.
"""

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ppo_jax.config import Config, replace
from ppo_jax.config_io import from_dict, to_dict
from ppo_jax.errors import ConfigError
from ppo_jax.experiment import Experiment
from ppo_jax.ranges import RANGES, check_ranges

SCORES = "objective/scores"
NAME, LONGEST = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*", 150  # of a variant: it becomes a folder's


def named_changes(experiment: Experiment) -> dict[str, Mapping[str, Any]]:
    """Name -> changes of each variant, as the file has them; their keys are not looked at yet."""
    path, given = experiment.path, experiment.sweep
    if not given.keys() & {"GRID", "RUNS", "SEEDS"}:
        expected = "GRID = {key: (values)}, RUNS = {name: {key: value}}, or SEEDS alone"
        raise ConfigError(f"{path}: GRID is missing; expected {expected}")
    if "GRID" in given and "RUNS" in given:
        raise ConfigError(f"{path}: RUNS: beside GRID; expected one of the two")
    if "RUNS" in given:
        named = _of_runs(given["RUNS"], path)
    elif "GRID" in given:
        named = _of_grid(given["GRID"], path)
    else:
        named = [("base", {})]
    names = [name for name, _ in named]
    for name in names:
        if not re.fullmatch(NAME, str(name)) or len(name) > LONGEST:
            valid = f"at most {LONGEST} letters, digits and ._=,+-, a folder's name (use RUNS)"
            raise ConfigError(f"{path}: cell {name!r}: expected {valid}")
        if names.count(name) > 1:
            raise ConfigError(f"{path}: GRID: two of its cells are {name}")
    return dict(named)


def _of_runs(runs: Any, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if not runs or not _is_dict(runs) or not all(map(_is_dict, runs.values())):
        raise ConfigError(f"{path}: RUNS: expected {{name: {{dotted key: value}}}}, got {runs!r}")
    return list(runs.items())


def _of_grid(grid: Any, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if not grid or not _is_dict(grid) or not all(map(_is_list, grid.values())):
        raise ConfigError(f"{path}: GRID: expected {{dotted key: (values)}}, got {grid!r}")
    products = itertools.product(*grid.values())
    changes = [dict(zip(map(str, grid), values, strict=True)) for values in products]
    return [(_name_of(each), each) for each in changes]


def _name_of(changes: Mapping[str, Any]) -> str:
    """`lam=0.95,epochs=4`: keys by their last part, where that says which one it is."""
    last = [key.rpartition(".")[2] for key in changes]
    keys = {
        key: part if last.count(part) == 1 else key for key, part in zip(changes, last, strict=True)
    }
    return ",".join(f"{keys[key]}={text_of(value)}" for key, value in changes.items())


def text_of(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple | list):
        return "+".join(map(text_of, value))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value))


def typed_values(base: Config, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values as their fields hold them. ConfigError names a key that is none, or a value of
    another type."""
    data = to_dict(base)
    for key, value in changes.items():
        if not isinstance(key, str) or _is_dict(value) or dataclasses.is_dataclass(value):
            raise ConfigError(f"{where}: {key}: expected a dotted key and the value of one field")
        *sections, last = key.split(".")
        node = data
        for section in sections:
            if not _is_dict(node.get(section)):
                node[section] = {}
            node = node[section]
        node[last] = list(value) if isinstance(value, tuple) else value
    config = from_dict(Config, data, where=where)
    return {key: field_of(config, key) for key in changes}


def flag_words(key: str, value: Any) -> tuple[str, ...]:
    """A flag that gives the field `key` this value."""
    return (f"--{key}", *map(str, value)) if isinstance(value, tuple) else (f"--{key}={value}",)


def read_seeds(experiment: Experiment) -> tuple[int, ...]:
    """SEEDS of the file; that of BASE where there is none."""
    given = experiment.sweep.get("SEEDS", (experiment.base.run.seed,))
    seeds = tuple(given) if _is_list(given) else ()
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds):
        expected = "expected whole numbers, each once; nearest: range(5)"
        raise ConfigError(f"{experiment.path}: SEEDS={given!r}: {expected}")
    for seed in seeds:
        config = replace(experiment.base, **{"run.seed": seed})
        try:
            check_ranges(config, {"run.seed": RANGES["run.seed"]})
        except ConfigError as error:
            raise ConfigError(f"{experiment.path}: SEEDS: {error}") from None
    return seeds


def read_metrics(experiment: Experiment) -> tuple[str, ...]:
    """METRICS of the file."""
    given = experiment.sweep.get("METRICS", (SCORES,))
    if not _is_list(given) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f'{experiment.path}: METRICS={given!r}: expected names; nearest: ("{SCORES}",)'
        )
    return tuple(given)


def read_windows(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """WINDOWS of the file: (first, end) iterations of metrics."""
    given, metrics = experiment.sweep.get("WINDOWS", {}), read_metrics(experiment)
    where = f"{experiment.path}: WINDOWS"
    if not _is_dict(given):
        expected = f'expected iterations; nearest: {{"{metrics[0]}": (0, 50)}}'
        raise ConfigError(f"{where}={given!r}: {expected}")
    for metric, window in given.items():
        if metric not in metrics:
            near = difflib.get_close_matches(str(metric), metrics, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: {metric!r} is not in METRICS; nearest: {near!r}")
        whole = _is_list(window) and len(window) == 2 and all(type(x) is int for x in window)
        if not whole or not 0 <= window[0] < window[1]:
            expected = "expected (first, end) of iterations from 0; nearest: (0, 50)"
            raise ConfigError(f"{where}: {metric!r}: {window!r}: {expected}")
    return {metric: (first, end) for metric, (first, end) in given.items()}


def read_pairs(experiment: Experiment, variants: Collection[str]) -> list[tuple[str, str]]:
    """PAIRS of the file: (one variant, another)."""
    given, where = experiment.sweep.get("PAIRS", ()), f"{experiment.path}: PAIRS"
    is_pair = lambda pair: _is_list(pair) and [*map(type, pair)] == [str, str]
    if not isinstance(given, tuple | list) or not all(map(is_pair, given)):
        example = f"[({', '.join(repr(name) for name in [*variants][:2])})]"
        raise ConfigError(f"{where}={given!r}: expected two variants each; nearest: {example}")
    for name in (name for pair in given for name in pair):
        if name not in variants:
            near = difflib.get_close_matches(name, variants, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: {name!r}: no such variant; nearest: {near!r}")
    return [(one, other) for one, other in given]


def _is_dict(value: Any) -> TypeGuard[dict]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[Sequence]:
    return isinstance(value, tuple | list | range) and len(value) > 0


def field_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)
