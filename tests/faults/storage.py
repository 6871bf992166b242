"""Disks that are full or cannot be written, two runs in a folder (F10, F11, F12)."""

import contextlib
import os
import resource
import signal
import subprocess
from pathlib import Path

from faults.damage import says
from faults.launch import assert_same, experiment, finish, launch, of, start
from faults.table import fault
from ppo_jax import manifest
from ppo_jax.metrics import read_metrics

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of that size, or a skip where this user may mount none."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@fault(
    "F10",
    "a full disk at a save",
    injected="no space at the first, a middle, the last save (fault hook); files limited in size",
    expected="a warning and ckpt/failed, the run goes on; code 6 if it is the last; no torn lines",
)
def full_at_a_save(folder: Path) -> str:
    path = experiment(folder, run__iterations=16, run__checkpoint_every=4)
    whole, seen = finish(path, folder / "whole"), []
    for number, code, left in ((1, 0, [12, 16]), (2, 0, [12, 16]), (4, 6, [8, 12])):
        runs = folder / str(number)
        ended = launch(path, runs, PPO_JAX_FAULT=f"full@save_commit:{number}")
        assert ended.code == code, f"{number}: exit code {ended.code}: {ended.err}"
        assert f"step {4 * number} was not saved" in ended.err, ended.err
        run = of(path, runs)
        assert manifest.steps(run.checkpoints) == left, manifest.steps(run.checkpoints)
        rows = read_metrics(run.metrics)
        if code == 0:
            assert rows[-1]["ckpt/failed"] == 1, rows[-1]
        assert_same(finish(path, runs), whole) if code else None
        seen.append(f"save {number}: code {code}, left {left}")
    ended = launch(path, folder / "limited", first=LIMIT.format(size=30_000))
    says(ended, 6, "not saved")
    return "; ".join(seen)


@fault(
    "F10b",
    "a file system that fills up",
    injected="run folders on a tmpfs of 1500 kB that the checkpoints outgrow",
    expected="as F10; checkpoints from before restorable; metrics.jsonl whole lines only",
)
def full_disk(folder: Path) -> str:
    path = experiment(folder, run__iterations=40, run__checkpoint_every=2, run__keep=100)
    with small_disk(folder / "disk", "1500k") as mounted:
        if not mounted:
            return "not run: no tmpfs can be mounted here (F10 has the rest)"
        ended = launch(path, folder / "disk")  # what it prints lies beside, on another disk
        assert ended.code == 6, f"exit code {ended.code}: {ended.err[-1500:]}"
        assert "was not saved" in ended.err, ended.err
        run = of(path, folder / "disk")
        steps = manifest.steps(run.checkpoints)
        assert steps, "no checkpoint from before"
        manifest.verify(run.checkpoints, steps[-1])
        rows = read_metrics(run.metrics)
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert run.metrics.read_bytes().endswith(b"\n")
    return f"code 6, {len(steps)} checkpoints whole, {len(rows)} whole lines: {ended.last[:120]}"


@fault(
    "F11",
    "an output folder that cannot be",
    injected="a file; below a file; not writable (not as root); read-only mount; /proc; no parent",
    expected="code 2 or 6 with the path before anything is loaded, < 2 s of CPU; a parent is made",
)
def bad_folder(folder: Path) -> str:
    path, seen = experiment(folder, run__iterations=1), []
    (folder / "file").write_text("")
    (folder / "closed").mkdir(mode=0o500)
    cases = [("file", folder / "file", 2), ("below a file", folder / "file" / "runs", 2)]
    if os.geteuid() != 0:
        cases.append(("not writable", folder / "closed" / "runs", 6))
    cases.append(("/proc", Path("/proc/ppo_jax_runs"), None))
    least = float("inf")
    with small_disk(folder / "disk", "1500k") as mounted:
        if mounted and read_only(folder / "disk"):
            cases.append(("read-only mount", folder / "disk" / "runs", 6))
        else:
            seen.append("read-only mount: not run, none can be mounted here")
        for name, runs, code in cases:
            before = cpu_seconds()
            ended = launch(path, folder / name.replace("/", ""), "--run.dir", str(runs))
            least = min(least, cpu_seconds() - before)
            assert ended.code in ((2, 6) if code is None else (code,)), f"{name}: {ended}"
            assert str(runs) in ended.last and "Traceback" not in ended.err, ended.err
            assert not ended.out, "something was loaded and shown"
            seen.append(f"{name}: {ended.code}")
    assert least < 2, f"{least:.1f} s of CPU at least"  # the least: other programs only add to it
    finish(path, folder / "not" / "there" / "yet")
    return f"{'; '.join(seen)}; {least:.1f} s of CPU"


def read_only(disk: Path) -> bool:
    mount = ["mount", "-o", "remount,ro", str(disk)]
    return subprocess.run(mount, capture_output=True).returncode == 0


def cpu_seconds() -> float:
    """Of all processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@fault(
    "F12",
    "two runs in one folder",
    injected="a second start while the first runs; the first killed with -9, then a third",
    expected="the second: code 5, naming pid, host, start of the first; the third goes on at once",
    fast=True,
)
def two_runs(folder: Path) -> str:
    path = experiment(folder, run__iterations=4000, run__checkpoint_every=5)
    job = start(path, folder / "runs")
    job.wait_for("12/4000")
    second = launch(path, folder / "runs")
    says(second, 5, f"process {job.process.pid}", os.uname().nodename, "since")
    job.process.send_signal(signal.SIGKILL)
    job.wait()
    third = start(path, folder / "runs")
    third.wait_for("resumed at iteration")
    third.process.send_signal(signal.SIGTERM)
    assert third.wait().code == 75
    return second.last


@fault(
    "F34",
    "too little memory",
    injected="an address space too small (RLIMIT_AS, lowered until it is); SIGKILL by the kernel",
    expected="it ends, with an error or a signal; the next start goes on as if nothing had been",
)
def little_memory(folder: Path) -> str:
    path = experiment(folder, run__iterations=12, run__checkpoint_every=4)
    whole = finish(path, folder / "whole")
    for megabytes in (2400, 2000, 1600, 1200, 800):
        size = megabytes << 20
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({size}, {size}))"
        runs = folder / f"runs-{megabytes}"
        ended = launch(path, runs, first=limit)
        if ended.code:
            break
    assert ended.code, "800 MB are enough"
    assert_same(finish(path, runs), whole)
    killed = launch(path, folder / "killed", PPO_JAX_FAULT="kill@step:7")
    assert killed.code == -signal.SIGKILL
    assert_same(finish(path, folder / "killed"), whole)
    return f"with {megabytes} MB: code {ended.code}, {ended.last[-100:]!r}; both went on"
