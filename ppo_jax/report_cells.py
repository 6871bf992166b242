"""The runs that a report is of: the cells of a sweep, or run folders as they lie, with their logs.

Nothing is left out in silence: a cell that is missing, has not ended or cannot be read keeps its
place, with the reason in words.
"""

import difflib
import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.errors import ConfigError, DataError, PPOJaxError, StorageError
from ppo_jax.metrics import read_metrics
from ppo_jax.report_stats import Window, number_of, values_in
from ppo_jax.run_folder import SWEEP, RunFolder, run_folder
from ppo_jax.stages import STAGES

DONE = "done"
KL, SCORES = "objective/kl", "objective/scores"
# Of runs that no sweep has made, those that are there.
USUAL = ("eval/scores", SCORES, KL, "eval/loss", "eval/accuracy", "loss")
TOGETHER, ALONE = "one program (--vmap)", "each by itself"  # how runs were made
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")


class Cell(NamedTuple):
    variant: str
    seed: int
    root: Path
    state: str  # DONE, or why its numbers do not count
    rows: list[dict[str, Any]]  # of metrics.jsonl
    facts: dict[str, str]  # commit, devices, versions, iterations
    command: str = ""  # that made it

    @property
    def done(self) -> bool:
        return self.state == DONE


class Study(NamedTuple):
    """Cells to be set beside each other."""

    name: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    doc: str = ""  # question and prediction
    path: str | None = None  # of the experiment file of a sweep
    words: tuple[str, ...] = ()  # flags that a sweep was given for all cells
    windows: Mapping[str, tuple[int, int]] = {}  # iterations, of metrics that have their own
    pairs: tuple[tuple[str, str], ...] = ()  # variants whose difference is shown
    base: str | None = None  # the variant of a sweep that changes nothing

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(cell.variant for cell in self.cells))

    def of(self, variant: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.variant == variant]


def read_study(root: Path) -> Study:
    """The experiment whose run folders lie below `root`, as its sweep.json has them, else as they
    lie. Raises ConfigError where there are none, DataError for a sweep.json that is none."""
    if (root / SWEEP).is_file():
        return _of_sweep(root)
    found = [folder for folder in _folders(root) for folder in _folders(folder)]
    stages = set(STAGES.values())
    found = [folder for folder in found if is_run(folder) and folder.parent.name not in stages]
    cells = [read_cell(folder.parent.name, _seed(folder), folder) for folder in found]
    # A stage may have a cell of any name: what made it tells.
    cells = [cell for cell in cells if not stages.intersection(cell.command.split()[1:2])]
    if not cells:
        raise ConfigError(f"{root}: no {SWEEP} and no run folder CELL/seed0 in it")
    names = {name for cell in cells for row in cell.rows for name in row}
    metrics = tuple(name for name in USUAL if name in names)
    return Study(root.name, metrics, tuple(sorted(cells, key=lambda c: (c.variant, c.seed))))


def with_metrics(study: Study, metrics: Sequence[str]) -> Study:
    """With these metrics (none: its own); ConfigError for one that no run has, with the nearest."""
    study = study._replace(metrics=tuple(dict.fromkeys(metrics or study.metrics)))
    names = {name for cell in study.cells for row in cell.rows for name in row} - {"step"}
    for metric in study.metrics if names else ():
        if metric not in names:
            near = difflib.get_close_matches(metric, sorted(names), n=1, cutoff=0.0)
            what = f"metric {metric!r}: no run of {study.name} has it"
            raise ConfigError(f"{what}; nearest: {near[0] if near else 'none'}")
    if not study.metrics:
        raise ConfigError(f"{study.name}: no metrics to report; name some: --metrics {SCORES}")
    return study


def is_run(root: Path) -> bool:
    folder = run_folder(root)
    return folder.metrics.is_file() or folder.config.is_file()


def read_cell(variant: str, seed: int, root: Path) -> Cell:
    """A run folder, which may be missing or damaged."""
    folder = run_folder(root)
    if not folder.metrics.is_file():
        return Cell(variant, seed, root, "no metrics.jsonl: not begun", [], {})
    try:
        rows = read_metrics(folder.metrics)
        env = read_json(folder.env) if folder.env.is_file() else {}
        facts, state = _facts(folder, env), _state(folder, rows)
    except PPOJaxError as error:
        return Cell(variant, seed, root, str(error), [], {})
    return Cell(variant, seed, root, state, rows, facts, _command(env))


def number(cell: Cell, metric: str, window: Window) -> tuple[float, str]:
    """(the number that stands for a cell, "") or (NaN, why there is none)."""
    if not cell.done:
        return math.nan, cell.state
    found = number_of(cell.rows, metric, window)
    if math.isfinite(found):
        return found, ""
    odd = [value for value in values_in(cell.rows, metric, window) if not math.isfinite(value)]
    where = f" at iterations {window[0]} to {window[1] - 1}" if isinstance(window, tuple) else ""
    return found, f"{metric} is {odd[-1]:g}" if odd else f"no {metric} in its log{where}"


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds an object; DataError or StorageError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object")
    return found


def _of_sweep(root: Path) -> Study:
    path = root / SWEEP
    given = read_json(path)
    cells = []
    for n, cell in enumerate(_typed(given, "cells", list, path)):
        where = f"{path}: cells[{n}]"
        if not isinstance(cell, dict):
            raise DataError(f"{where}: expected an object")
        variant, seed = _typed(cell, "name", str, where), _typed(cell, "seed", int, where)
        cells.append(read_cell(variant, seed, _place(root, _typed(cell, "dir", str, where))))
    metrics = _typed(given, "metrics", list, path)
    if not all(isinstance(metric, str) for metric in metrics):
        raise DataError(f"{path}: metrics: expected names")
    if not cells:
        raise DataError(f"{path}: cells: there are none")
    windows = given.get("windows", {})
    if not isinstance(windows, dict) or not all(map(_is_window, windows.values())):
        raise DataError(f"{path}: windows: expected {{metric: [from, to]}}, got {windows!r:.60}")
    variants = {cell.variant for cell in cells}
    words, pairs = given.get("words", []), given.get("pairs", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{path}: words: expected flags, got {words!r:.60}")
    if not isinstance(pairs, list) or not all(_is_pair(pair, variants) for pair in pairs):
        raise DataError(f"{path}: pairs: expected [[variant, variant]], got {pairs!r:.60}")
    doc, source, base = given.get("doc"), given.get("path"), given.get("base")
    return Study(
        root.name,
        tuple(metrics),
        tuple(cells),
        doc=doc if isinstance(doc, str) else "",
        path=source if isinstance(source, str) else None,
        words=tuple(words),
        windows={metric: (first, end) for metric, (first, end) in windows.items()},
        pairs=tuple((one, other) for one, other in pairs),
        base=base if base in variants else None,
    )


def _is_window(given: Any) -> bool:
    return isinstance(given, list) and len(given) == 2 and all(type(x) is int for x in given)


def _is_pair(given: Any, variants: Collection[str]) -> bool:
    is_one = lambda x: isinstance(x, str) and x in variants
    return isinstance(given, list) and len(given) == 2 and all(map(is_one, given))


def _typed(given: dict[str, Any], key: str, kind: type, where: object) -> Any:
    if not isinstance(given.get(key), kind):
        raise DataError(f"{where}: {key}: expected {kind.__name__}, got {given.get(key)!r:.60}")
    return given[key]


def _place(root: Path, given: str) -> Path:
    """A cell's folder: below the sweep's, which may have been moved, else where it was made."""
    here = root.joinpath(*Path(given).parts[-2:])
    return here if here.is_dir() or not Path(given).is_dir() else Path(given)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ConfigError(f"{root}: no folder of runs ({error.strerror})") from None


def _seed(folder: Path) -> int:
    digits = folder.name.removeprefix("seed")
    return int(digits) if digits.isdecimal() else 0


def _state(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> str:
    if not folder.status.is_file():
        return f"no status.json: stopped after {len(rows)} iterations"
    given = read_json(folder.status)
    status, error = given.get("status"), given.get("error")
    if status == DONE:
        return DONE if rows else "no line in its metrics.jsonl"
    why = f" ({error})" if isinstance(error, str) and error else ""
    return f"{status} after {len(rows)} iterations{why}"


def _command(env: Mapping[str, Any]) -> str:
    argv = env.get("argv")
    if not isinstance(argv, list) or not argv:
        return ""
    return shlex.join(["ppo-jax", *map(str, argv[1:])])


def _facts(folder: RunFolder, env: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers depend on beside the experiment: code, versions, devices, length."""
    git = env.get("git")
    facts = {"commit": "unknown"}
    facts["runs"] = TOGETHER if "--vmap" in _command(env).split() else ALONE
    if isinstance(git, dict):
        facts["commit"] = f"{str(git.get('sha'))[:12]}{' and changes' if git.get('dirty') else ''}"
    if "device_kind" in env:
        device = f"{env.get('device_count')} x {env['device_kind']}"
        facts["device"] = f"{device}, {env.get('cpu_count')} CPU cores"
    facts["Python"] = str(env.get("python", "unknown"))
    facts |= {name: str(env[name]) for name in LIBRARIES if env.get(name) is not None}
    if folder.config.is_file():
        run = read_json(folder.config).get("run")
        if isinstance(run, dict):
            facts["iterations"] = str(run.get("iterations"))
    return facts
