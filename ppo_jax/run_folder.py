"""The folder of one run: where each file lies, and what is written beside the metrics.

    <run.dir>/<experiment>/<run.cell>/seed<k>/
        config.json  env.json  status.json  metrics.jsonl  samples.jsonl  checkpoints/  tokenizer/

In a run of several processes the first one alone writes.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from ppo_jax.config import Config, RunOptions
from ppo_jax.config_io import diff, load_config, save_config, write_atomic
from ppo_jax.errors import ConfigError, DataError

# Keys that may change between the parts of one run: they do not alter what is computed. The number
# of iterations is one of them only while no schedule counts on it.
HARMLESS = frozenset(
    f"run.{name}"
    for name in (
        "dir progress profile_after samples show_prompts checkpoint_every keep compile_cache"
    ).split()
) | {"model.trust_remote_code"}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "transformers")

Status = Literal["running", "done", "failed", "preempted"]


class RunFolder(NamedTuple):
    root: Path
    config: Path
    env: Path
    metrics: Path
    samples: Path
    checkpoints: Path
    status: Path
    tokenizer: Path


def run_path(run: RunOptions, experiment: str) -> Path:
    """`<dir>/<experiment>/<cell>/seed<k>`; ConfigError if a part is not one folder's name."""
    if "://" in run.dir:
        raise ConfigError(f"run.dir={run.dir}: must be a local folder")
    for key, name in (("the experiment's name", experiment), ("run.cell", run.cell)):
        if name in ("", ".", "..") or "/" in name or os.sep in name:
            raise ConfigError(f"{key}={name!r}: must be the name of one folder, without a slash")
    return Path(run.dir).expanduser() / experiment / run.cell / f"seed{run.seed}"


def run_folder(root: Path) -> RunFolder:
    """The paths of a run folder, which need not exist."""
    names = ("config.json", "env.json", "metrics.jsonl", "samples.jsonl", "checkpoints")
    return RunFolder(root, *(root / name for name in (*names, "status.json", "tokenizer")))


def open_run(config: Config, experiment: str) -> RunFolder:
    """Make the run's folder, or reopen it to go on, and write its `config.json`.

    Raises ConfigError if the folder cannot be made or written, or if it belongs to a run with
    another config: then with every dotted key that differs.
    """
    folder = run_folder(run_path(config.run, experiment))
    if not is_writer():
        return folder
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run folder {folder.root}: cannot be made ({error.strerror}); set another --run.dir"
        ) from None
    if not os.access(folder.root, os.W_OK | os.X_OK):
        raise ConfigError(f"run folder {folder.root}: not writable; set another --run.dir")
    # Without a checkpoint there is nothing to go on from: the run starts anew, as configured now.
    if folder.config.exists() and _has_checkpoint(folder):
        _check_same_run(folder, load_config(folder.config), config)
    save_config(folder.config, config)
    return folder


def write_env(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write `env.json`: code version, libraries, devices, command line, start (UTC), and `facts`
    that the caller knows."""
    if not is_writer():
        return
    env = {"started": _now(), "argv": sys.argv, **facts, **environment()}
    write_atomic(folder.env, json.dumps(env, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Code version, libraries and devices of this process."""
    device = jax.devices()[0]
    return {
        "git": _git(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def write_status(folder: RunFolder, status: Status, step: int, **extra: Any) -> None:
    """Write `status.json`: how the run stands after `step` finished iterations."""
    if is_writer():
        content = {"status": status, "step": int(step), "time": _now(), **extra}
        write_atomic(folder.status, json.dumps(content, indent=2, allow_nan=False) + "\n")


def reconcile(folder: RunFolder, step: int) -> None:
    """Cut metrics and samples back to the iterations before `step`, which will be run again.

    Without this a run resumed from a checkpoint would log the iterations since then twice.
    """
    if not is_writer():
        return
    for path in (folder.metrics, folder.samples):
        if path.exists():
            kept = [line for line, row in read_lines(path) if row["step"] < step]
            write_atomic(path, "".join(f"{line}\n" for line in kept))


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(line, its object) for each line of a log in which every line has a `step`.

    A last line without its newline was torn by a crash and is left out. DataError names the file
    and line of anything else that is not such an object.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{path}:{number}: not a JSON object with a whole number as `step`")
        rows.append((line, row))
    return rows


def is_writer() -> bool:
    """Whether this process is the one that writes the run's files."""
    return jax.process_index() == 0


def _has_checkpoint(folder: RunFolder) -> bool:
    found = folder.checkpoints.iterdir() if folder.checkpoints.is_dir() else ()
    return any(path.name.isdigit() for path in found)


def _check_same_run(folder: RunFolder, old: Config, new: Config) -> None:
    harmless = set(HARMLESS)
    if old.optim.schedule == new.optim.schedule == "constant":
        harmless.add("run.iterations")
    differing = [line for line in diff(old, new) if line.split(":")[0] not in harmless]
    if differing:
        raise ConfigError(
            f"run folder {folder.root}: holds a run with another config "
            f"({', '.join(differing)}); choose another --run.cell or --run.dir"
        )


def _git() -> dict[str, Any] | None:
    """Commit of this package's own repository, or None where it is installed from elsewhere."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        # A package inside a virtual environment may lie in a repository that is not its own.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
