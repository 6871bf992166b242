"""The folder of one run: where each file lies, and what is written beside the metrics.

    <run.dir>/<experiment>/<run.cell>/seed<k>/
        config.json  env.json  status.json  metrics.jsonl  samples.jsonl  checkpoints/  tokenizer/

In a run of several processes the first one alone writes.
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from ppo_jax import processes
from ppo_jax.agreement import on_first, together
from ppo_jax.config import Config, RunOptions
from ppo_jax.errors import ConfigError, DataError, StorageError
from ppo_jax.processes import is_writer
from ppo_jax.storage import as_path, write_atomic

BAD_PATH = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL)
SENT = "COMMIT"  # COMMIT or COMMIT+changes, by experiments/launch/tpu.sh
SHARED_SECONDS = 10.0  # for a new file to be seen on other machines: file systems cache what lacks
# The last holds the lexicon of a reward.
SWEEP = "sweep.json"  # which cells a sweep has, beside their folders
LIBRARIES = (
    "jax jaxlib flax optax chex orbax-checkpoint numpy transformers tokenizers vaderSentiment"
).split()

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
    for key, name in (("the experiment's name", experiment), ("run.cell", run.cell)):
        if name in ("", ".", "..") or "/" in name or os.sep in name:
            raise ConfigError(f"{key}={name!r}: must be the name of one folder, without a slash")
    return as_path(run.dir, "run.dir").expanduser() / experiment / run.cell / f"seed{run.seed}"


def run_folder(root: Path) -> RunFolder:
    """The paths of a run folder, which need not exist."""
    names = ("config.json", "env.json", "metrics.jsonl", "samples.jsonl", "checkpoints")
    return RunFolder(root, *(root / name for name in (*names, "status.json", "tokenizer")))


def make_folder(config: Config, experiment: str) -> RunFolder:
    """The run's folder, made if it is not there.

    Raises ConfigError if its path cannot be a folder's, StorageError if it cannot be written.
    """
    folder = run_folder(run_path(config.run, experiment))
    if not is_writer():
        return folder
    what = f"run folder {folder.root}"
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        probe = folder.root / f".{os.getpid()}.tmp"
        probe.touch()  # permissions do not tell of a file system that can only be read
        probe.unlink()
    except OSError as error:
        why = f"{what}: cannot be made or written ({error.strerror}); set another --run.dir"
        raise (ConfigError if error.errno in BAD_PATH else StorageError)(why) from None
    return folder


def check_shared(folder: RunFolder) -> None:
    """ConfigError, in all processes, where one does not see what the first one has written."""
    if processes.count() == 1:
        return
    mark = folder.root / ".shared.tmp"
    word = on_first("mark", lambda: _mark(mark))
    try:
        together("marked", lambda: _find(mark, word))
    finally:
        if is_writer():
            mark.unlink()


def _mark(path: Path) -> str:
    word = secrets.token_hex(8)
    write_atomic(path, word)
    return word


def _find(path: Path, word: str) -> None:
    deadline = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == word:
                return
        time.sleep(0.2)
    raise ConfigError(
        f"run folder {path.parent} on {socket.gethostname()}: not the folder of process 0; with "
        "several processes --run.dir is one that all machines share, or gs://bucket/folder"
    )


def write_env(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write `env.json`: code version, libraries, devices, command line, start (UTC), and `facts`
    that the caller knows."""
    if not is_writer():
        return
    env = {"started": _now(), "argv": sys.argv, **facts, **environment()}
    write_atomic(folder.env, json.dumps(env, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Code version, libraries and devices of this process."""
    return {"git": _git(), **machine()}


def machine() -> dict[str, Any]:
    """Libraries and devices of this process."""
    device = jax.devices()[0]
    return {
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


def read_status(folder: RunFolder) -> dict[str, Any]:
    """What `write_status` wrote last: "status", "step", "saved", "error", ...; empty where there is
    nothing to be read."""
    try:
        found = json.loads(folder.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
        text = as_path(path).read_bytes().decode("utf-8", errors="replace")
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


def _git() -> dict[str, Any] | None:
    """Commit of this package's own repository, or None where it is installed from elsewhere; of
    code that was sent to this machine without one, what is written beside it."""
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
        return _sent(here.parent / SENT)


def _sent(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError):
        sha, _, changes = path.read_text(encoding="utf-8").strip().partition("+")
        return {"sha": sha, "dirty": bool(changes)}
    return None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
