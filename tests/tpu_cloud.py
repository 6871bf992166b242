"""`make tpu-*` against a cloud that is a folder: see fake_gcloud.py."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FAKE = Path(__file__).with_name("fake_gcloud.py")
LAUNCH = ROOT / "experiments" / "launch"
PLAN = {
    "workers": 1,
    # before ACTIVE, of the first request, the second, ...; the last stands for all that follow
    "states": [["WAITING_FOR_RESOURCES", "PROVISIONING"]],
    "ends": [],  # of the first VM, the second, ...
    "ends_with": ["0@60"],  # the first start of a training, the second, ...; None: the real one
    "pip": True,
    "deaf": None,  # ssh reaches no worker of the first VM once such a file is in a bucket
}
NAMES = {
    "TPU_NAME": "ppo",
    "ZONE": "us-east5-b",
    "PROJECT": "my-project",
    "ACCEL": "v6e-8",
    "BUCKET": "my-bucket",
    "RUN_ID": "run1",
    "EXP": "tiny",
}
OWN = (*NAMES, "RUNTIME", "SPOT", "WORKER", "CMD", "SEED", "ARGS", "RUN_DIR", "DRY_RUN")
needs_programs = pytest.mark.skipif(
    not all(map(shutil.which, ("git", "make", "bash", "setsid"))), reason="needs git, make, setsid"
)


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def commands(self) -> list[list[str]]:
        """What was shown, as the words that a shell reads."""
        shown = [line[2:] for line in self.out.splitlines() if line.startswith("+ ")]
        return [shlex.split(line) for line in shown]


class Cloud:
    def __init__(self, folder: Path, repository: Path, **plan: Any) -> None:
        assert plan.keys() <= PLAN.keys()
        self.folder, self.repository = folder, repository
        self.buckets = folder / "buckets"
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(PLAN | plan))
        _program(folder / "bin/gcloud", "gcloud")
        for name in ("gcloud", "python3", "sudo", "hostname", "tail"):
            _program(folder / "vm-bin" / name, name)

    def plan(self, **changes: Any) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def tpu(self, target: str, names: dict[str, str] | None = None, **more: str) -> Said:
        """experiments/launch/tpu.sh, whose exit code make would hide."""
        env = self.environment() | (NAMES if names is None else names) | more
        return _ran(["bash", "experiments/launch/tpu.sh", target], self.repository, env)

    def make(self, *words: str) -> Said:
        given = [f"{name}={value}" for name, value in NAMES.items()]
        return _ran(["make", "-s", *given, *words], self.repository, self.environment())

    def environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key not in OWN}
        path = f"{self.folder / 'bin'}:{env['PATH']}"
        env |= {"PATH": path, "FAKE_CLOUD": str(self.folder)}
        return env | {"POLL": "0.1", "SSH_AUTH_SOCK": ""}

    def calls(self, program: str = "gcloud") -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call["words"] for call in map(json.loads, lines) if call["program"] == program]

    def verbs(self) -> list[str]:
        """What was asked of gcloud, in short: its second noun and its verb."""
        from_here = [words for words in self.calls() if words[0] == "compute"]
        return [f"{words[2]} {words[3]}" for words in from_here]

    def home(self, life: int = 1, worker: int = 0) -> Path:
        return self.folder / "vms" / str(life) / str(worker)

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def close(self) -> None:
        for pid in self.folder.glob("vms/*/*/ppo_jax-launch/pid"):
            with contextlib.suppress(OSError, ValueError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)


def _program(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKE} {name} "$@"\n')
    path.chmod(0o755)


def _ran(command: list[str], folder: Path, env: dict[str, str]) -> Said:
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def make_repository(folder: Path) -> Path:
    """A checkout with the working tree's code, as it is now."""
    skip = shutil.ignore_patterns("__pycache__", "results", "bench")
    for name in ("ppo_jax", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in (".gitignore", "Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def cloud(tmp_path, repository):
    """A cloud with nothing in it; `plan` says what becomes of what is asked for."""
    made = Cloud(tmp_path / "cloud", repository)
    yield made
    made.close()
