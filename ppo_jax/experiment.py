"""Experiment files: plain Python that names BASE (a Config) and REWARD (see `rewards.base`), and
where they train a model before it SFT and REWARD_MODEL (Configs of those two commands). JUDGE is
what evaluations decide by, in a run (`eval/judge`) and by `ppo-jax eval`, where REWARD is not the
aim itself: a rule, as REWARD is, which nothing is trained on.

A file may start from another one: `PARENT = load_experiment("arithmetic")` gives it all that it
does not define itself, `BASE = replace(PARENT.base, **{"ppo.epochs": 1})` a little of it changed.
A file that trains SFT or a reward model alone has no need of BASE and REWARD.
GRID or RUNS, SEEDS, METRICS and WINDOWS make it a sweep (`variants`); a PARENT hands none on.
"""

import ast
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from ppo_jax.config import Config
from ppo_jax.data import REPOSITORY
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.envs.host import HostEnv
from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import Part, parse_rewards
from ppo_jax.stages import Stages, own_cell

# Where bare names are looked up: of experiments, and of what `ppo-jax bench` times.
EXPERIMENTS, WORKLOADS = "experiments", "experiments/bench"
ABLATIONS = "experiments/ablations"  # where bare names are looked up that EXPERIMENTS lacks
# What PPO needs of a file, and what that is.
NEEDED = {
    "BASE": "a ppo_jax.config.Config",
    "REWARD": "a reward function, or a list with weights",
}
JUDGE = "judge."  # before the name of a part of JUDGE
# What `ppo-jax sweep` reads of a file.
SWEEP = ("GRID", "RUNS", "SEEDS", "METRICS", "WINDOWS", "PAIRS")
# Path of a file that is being run, and the experiment files that it has loaded.
_running: list[tuple[Path, list[Path]]] = []


class Experiment(NamedTuple):
    name: str  # of the run folder: the file's name without .py
    base: Config  # None, as REWARD is, in a file that lacks it where nothing needs it
    reward: Any  # as the file gives it; `rewards.base.parse_rewards` reads it
    path: Path
    doc: str  # docstring of the file: command, hardware, time, expected result
    workload: Any = None  # WORKLOAD of the file, where it has one; read by `workload`
    sft: Config | None = None  # SFT of the file: what `ppo-jax sft` trains
    reward_model: Config | None = None  # REWARD_MODEL of the file
    environment: DeviceEnv | HostEnv | None = None  # ENVIRONMENT, which the policy talks with
    judge: Any = None  # JUDGE of the file, in the form of REWARD
    sweep: Mapping[str, Any] = MappingProxyType({})  # those of SWEEP that the file defines
    loaded: tuple[Path, ...] = ()  # experiment files that it starts from, whose code is its own too
    given: str | None = None  # the path or bare name by which commands find it; None: its name

    @property
    def command_name(self) -> str:
        """What commands find it by: as it was given, a path perhaps."""
        return self.given or self.name

    @property
    def stages(self) -> Stages:
        """Where SFT and REWARD_MODEL have their runs."""
        configs = {"@sft": self.sft, "@reward-model": self.reward_model}
        cells = {name: own_cell(one.run, name) for name, one in configs.items() if one is not None}
        return Stages(self.name, cells, self.command_name)


def load_experiment(
    name_or_path: str | Path, folder: str = EXPERIMENTS, needs: Collection[str] = tuple(NEEDED)
) -> Experiment:
    """Run an experiment file, given by its path or by its bare name in `folder`.

    Raises ConfigError if there is no such file (with the nearest name), if it raises (with the
    line), if one of `needs` is missing (BASE, REWARD), or if something is not what it should be. A
    file that another one starts from need not have them.
    """
    path = find_experiment(name_or_path, folder)
    module, loaded = _run_with_others(path)
    _inherit(module, path)
    for name in needs if not _running else ():
        _check_there(module, path, name)
    base: Any = _optional(module, path, "BASE")
    reward, judge = getattr(module, "REWARD", None), getattr(module, "JUDGE", None)
    for name, given in {"REWARD": reward, "JUDGE": judge}.items():
        try:
            _ = given is None or parse_rewards(given)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
    return Experiment(
        path.stem,
        base,
        reward,
        path,
        doc=(module.__doc__ or "").strip(),
        workload=getattr(module, "WORKLOAD", None),
        sft=_optional(module, path, "SFT"),
        reward_model=_optional(module, path, "REWARD_MODEL"),
        environment=_environment(module, path),
        judge=judge,
        sweep={name: getattr(module, name) for name in SWEEP if hasattr(module, name)},
        loaded=loaded,
        given=str(name_or_path if folder == EXPERIMENTS else path),
    )


def judge_parts(judge: Any) -> list[Part]:
    """Of a JUDGE, under names that no reward has; none where there is none."""
    parts = [] if judge is None else parse_rewards(judge)
    return [part._replace(name=JUDGE + part.name) for part in parts]


def all_parts(experiment: Experiment) -> list[Part]:
    """Of REWARD and of JUDGE."""
    return [*parse_rewards(experiment.reward), *judge_parts(experiment.judge)]


def find_experiment(name_or_path: str | Path, folder: str = EXPERIMENTS) -> Path:
    """The experiment file of that path or name, which may name a folder within (`ablations/x`).

    ConfigError with the nearest if there is none.
    """
    given = Path(name_or_path).expanduser()
    if given.suffix == ".py":
        if given.is_file():
            return given.resolve()
        known = {str(p.name): p for p in _files(given.parent)}
        near = difflib.get_close_matches(given.name, known, n=1, cutoff=0.0)
        hint = f"nearest: {known[near[0]]}" if near else f"no .py file in {given.parent}"
        raise ConfigError(f"experiment: no file {given}; {hint}")
    known = list_experiments(folder)
    if folder == EXPERIMENTS:
        known = list_experiments(ABLATIONS) | known
    if given.parent.parts and not given.is_absolute() and ".." not in given.parts:
        within = list_experiments(f"{folder}/{given.parent.as_posix()}")
        known |= {f"{given.parent.as_posix()}/{name}": path for name, path in within.items()}
    path = known.get(str(given))
    if path is None:
        near = difflib.get_close_matches(str(given), known, n=3, cutoff=0.0)
        hint = f"nearest: {', '.join(near)}" if near else f"there is no {folder}/ folder here"
        raise ConfigError(f"experiment: no {folder}/{given}.py; {hint}")
    return path


def list_experiments(folder: str = EXPERIMENTS) -> dict[str, Path]:
    """Bare names and files in `folder` of the working directory, then of the repository."""
    found: dict[str, Path] = {}
    for root in (Path.cwd() / folder, REPOSITORY / folder):
        for path in _files(root):
            found.setdefault(path.stem, path)
    return found


def summary(path: Path) -> str:
    """First line of a file's docstring, read without running it."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return "(does not parse)"
    return doc.splitlines()[0] if doc else ""


def _files(folder: Path) -> Iterator[Path]:
    """The experiment files right in a folder, by name; `_private.py` is a part of others."""
    found = folder.glob("*.py") if folder.is_dir() else ()
    return (path.resolve() for path in sorted(found) if not path.name.startswith("_"))


def _run_with_others(path: Path) -> tuple[ModuleType, tuple[Path, ...]]:
    """(the file's module, the experiment files that it has loaded, and those in turn)"""
    if any(path == other for other, _ in _running):
        raise ConfigError(f"{path}: starts from itself")
    _running.append((path, []))
    try:
        module = _run_file(path)
    finally:
        loaded = _running.pop()[1]
    if _running:
        _running[-1][1].extend((path, *loaded))
    return module, tuple(dict.fromkeys(loaded))


def _inherit(module: ModuleType, path: Path) -> None:
    """What the file's PARENT has and the file does not define."""
    parent = getattr(module, "PARENT", None)
    if parent is None:
        return
    if not isinstance(parent, Experiment):
        raise ConfigError(
            f"{path}: PARENT is a {type(parent).__name__}; expected what load_experiment gives: "
            'PARENT = load_experiment("arithmetic")'
        )
    theirs = {
        "BASE": parent.base,
        "REWARD": parent.reward,
        "SFT": parent.sft,
        "REWARD_MODEL": parent.reward_model,
        "ENVIRONMENT": parent.environment,
        "JUDGE": parent.judge,
        "WORKLOAD": parent.workload,
    }
    for name, value in theirs.items():
        if value is not None and not hasattr(module, name):
            setattr(module, name, value)


def _run_file(path: Path) -> ModuleType:
    name = f"ppo_jax_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path}:{_line(error, path)}: {what}") from error
    return module


def _line(error: Exception, path: Path) -> int:
    """The last line of the file on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 1 for f in reversed(frames) if f.filename == str(path)), 1)


def _optional(module: ModuleType, path: Path, name: str) -> Config | None:
    config = getattr(module, name, None)
    return None if config is None else _config(path, name, config)


def _environment(module: ModuleType, path: Path) -> DeviceEnv | HostEnv | None:
    given = getattr(module, "ENVIRONMENT", None)
    if given is not None and not isinstance(given, DeviceEnv | HostEnv):
        raise ConfigError(
            f"{path}: ENVIRONMENT is a {type(given).__name__}; expected a "
            "ppo_jax.envs.base.DeviceEnv, as ppo_jax.envs.maze.maze() makes one, or a "
            "ppo_jax.envs.host.HostEnv"
        )
    return given


def _config(path: Path, name: str, config: Any) -> Config:
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"{path}: {name} is a {kind}; expected a ppo_jax.config.Config")
    return config


def _check_there(module: ModuleType, path: Path, name: str) -> None:
    if getattr(module, name, None) is None:
        others = [n for n in vars(module) if n.isupper() and n != name]
        near = difflib.get_close_matches(name, others, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f"{path}: {name} is missing; expected {name} = {NEEDED[name]}{hint}")
