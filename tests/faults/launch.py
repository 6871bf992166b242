"""Tiny runs as a user starts them, each in a process of its own, and what they leave behind."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from ppo_jax import manifest
from ppo_jax.checkpoint import open_saver, save
from ppo_jax.config import ParallelOptions
from ppo_jax.main import main
from ppo_jax.metrics import read_metrics, read_samples
from ppo_jax.restore import restore
from ppo_jax.run_folder import RunFolder, run_folder
from ppo_jax.sharding import make_mesh, replicated

TESTS = Path(__file__).resolve().parents[1]
CLOCK = ("time/", "throughput/", "memory/", "compile/", "eps")  # what no two runs have alike
CACHE = Path.home() / ".cache" / "ppo_jax" / "xla-tests"
HEAD = f'''"""A tiny run."""
import sys
sys.path.insert(0, {str(TESTS)!r})
from ppo_jax.config import replace
from tiny_runs import CONFIG, ascii_share, ascii_text, half_and_half
BASE = replace(CONFIG, **{{"reward.workers": 1, "parallel.data": -1, "ppo.token_sizes": 2}})
'''


class Ended(NamedTuple):
    code: int  # negative: of a signal
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line on stderr: what the user is told."""
        return (self.err.strip().splitlines() or [""])[-1]


class Job(NamedTuple):
    """A run that has been started."""

    process: subprocess.Popen
    out: Path
    began: float

    def wait(self, timeout: float = 240) -> Ended:
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        read = lambda kind: self.out.with_suffix(kind).read_text(errors="replace")
        return Ended(code, read(".out"), read(".err"), time.monotonic() - self.began)

    def signal_after(self, seconds: float, number: int = signal.SIGKILL) -> Ended:
        """End it so many seconds after its start, unless it ends before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, self.began + seconds - time.monotonic()))
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Until its output has the text."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            if text in self.out.with_suffix(".out").read_text(errors="replace"):
                return
            time.sleep(0.005)
        raise AssertionError(f"no {text!r} in {self.out.with_suffix('.out')}")


def experiment(
    folder: Path, *, reward: str = "REWARD = ascii_share", name: str = "case", **changes: Any
) -> Path:
    """An experiment file in the folder, with its prompts; `changes` are of the tiny config, a dot
    written as two underscores."""
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        rows = [{"prompt": "abcdef"[n % 6 :] * (1 + n % 2), "boost": 1.0} for n in range(16)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    changed = {"data.path": str(prompts), "run.compile_cache": str(CACHE)} | changed
    path = folder / f"{name}.py"
    path.write_text(f"{HEAD}BASE = replace(BASE, **{changed!r})\n{reward}\n")
    return path


def start(
    path: Path, runs: Path, *flags: str, devices: int = 1, first: str = "", **env: str
) -> Job:
    """`ppo-jax train` of an experiment file, into run folders under `runs`; `first` is Python that
    is run before it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PPO_JAX_FAULT")}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    runs.parent.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in runs.parent.glob(f"{runs.name}-*.out"))
    out = runs.parent / f"{runs.name}-{number}"
    words = ["train", str(path), "--run.dir", str(runs), *flags]
    code = f"{first}\nimport sys\nfrom ppo_jax.main import main\nsys.exit(main({words!r}))"
    command = [sys.executable, *(["-c", code] if first else ["-m", "ppo_jax", *words])]
    with out.with_suffix(".out").open("wb") as stdout, out.with_suffix(".err").open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment | env, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL
        )
    return Job(process, out, time.monotonic())


def launch(path: Path, runs: Path, *flags: str, **options: Any) -> Ended:
    return start(path, runs, *flags, **options).wait()


def finish(path: Path, runs: Path, *flags: str, **options: Any) -> RunFolder:
    """The run's folder, after a start that must end well."""
    ended = launch(path, runs, *flags, **options)
    assert ended.code == 0, f"exit code {ended.code}: {ended.err[-2000:]}"
    return of(path, runs)


def of(path: Path, runs: Path) -> RunFolder:
    return run_folder(runs / path.stem / "base" / "seed0")


def here(*words: str) -> tuple[int, str]:
    """(exit code, stderr) of a command that ends before it trains, in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(error.code or 0)
    return code, err.getvalue()


def exact(folder: RunFolder) -> list[dict[str, str]]:
    """All that is logged but times, floats to the last bit."""
    return [
        {name: float(value).hex() for name, value in row.items() if not name.startswith(CLOCK)}
        for row in read_metrics(folder.metrics)
    ]


def digest(folder: RunFolder, step: int) -> str:
    """sha256 of every array of a checkpoint: weights, optimiser states, KL controller, PRNG key,
    counters. The files themselves are not compared: Orbax may write the same arrays otherwise."""
    manifest.verify(folder.checkpoints, step)
    path = folder.checkpoints.absolute() / str(step) / manifest.ITEM
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        item = reader.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
    found = hashlib.sha256()
    for name, array in jax.tree_util.tree_leaves_with_path(tree):
        found.update(f"{jax.tree_util.keystr(name)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def differences(left: RunFolder, right: RunFolder) -> list[str]:
    """What two finished runs have not in common, to the last bit."""
    found, (one, other) = [], (exact(left), exact(right))
    steps = [float.fromhex(row["step"]) for row in one]
    if steps != list(range(len(steps))):
        found.append(f"steps of {left.metrics} are not each there once")
    if one != other:
        found.append("metrics")
    if read_samples(left.samples) != read_samples(right.samples):
        found.append("samples")
    last = [manifest.latest_step(folder.checkpoints) for folder in (left, right)]
    if last[0] != last[1] or last[0] != len(steps):
        found.append(f"last steps {last}")
    elif digest(left, last[0]) != digest(right, last[0]):
        found.append("state")
    leftover = [p.name for p in left.checkpoints.iterdir() if not is_checkpoint(p)]
    return found + [f"left behind: {name}" for name in leftover]


def is_checkpoint(path: Path) -> bool:
    return path.name.isdecimal() or (path.suffix == ".json" and path.stem.isdecimal())


def assert_same(left: RunFolder, right: RunFolder) -> None:
    found = differences(left, right)
    assert not found, f"{left.root}: {', '.join(found)}"


def restored_digest(folder: RunFolder, step: int, again: Path, devices: int) -> str:
    """`digest` of a checkpoint that a process of so many devices has restored and saved again."""
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from faults.launch import save_again\n"
        f"save_again({str(folder.checkpoints)!r}, {step}, {str(again / 'checkpoints')!r})"
    )
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | flags
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return digest(run_folder(again), step)


def save_again(checkpoints: str, step: int, again: str) -> None:
    """On all devices of this process."""
    everywhere = replicated(make_mesh(ParallelOptions()))
    path = Path(checkpoints).absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path / str(step) / manifest.ITEM).item_metadata.tree
    where = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
    state = restore(path, step, jax.tree.map(where, tree))
    with open_saver(Path(again), keep=1) as saver:
        save(saver, step, state)
