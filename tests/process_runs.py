"""Runs of several processes on this machine, each with fake CPU devices, joined by gloo."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from faults.launch import TESTS, Ended, Job, digest, of, save_again, start
from ppo_jax import processes
from ppo_jax.arguments import ProcessArgs
from ppo_jax.preemption import Preemption
from ppo_jax.run_folder import RunFolder, run_folder

JOIN_SECONDS = "120"
# Each process compiles by itself, on the processors that they share: as fast as XLA can.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
GLOO = "[Gloo] "  # the network of the devices says what it is connected to


def free_port() -> int:
    with contextlib.closing(socket.create_server(("", 0))) as listener:
        return listener.getsockname()[1]


def start_fast(path: Path, runs: Path, *flags: str, devices: int = 1, **options: Any) -> Job:
    """`start`, with less time for the compiler."""
    xla = f"--xla_force_host_platform_device_count={devices} {FAST}"
    return start(path, runs, *flags, XLA_FLAGS=xla, **options)


def start_all(
    path: Path,
    runs: Path,
    *flags: str,
    count: int = 2,
    env: dict[int, dict[str, str]] | None = None,
    own: dict[int, list[str]] | None = None,
    **options: Any,
) -> list[Job]:
    """The processes of one run; some have variables (`env`) and flags (`own`) of their own."""
    address = f"127.0.0.1:{free_port()}"
    flags = (*flags, "--coordinator", address, "--processes", str(count))
    flags = (*flags, "--join_seconds", JOIN_SECONDS)

    def begin(k: int) -> Job:
        mine = ["--process", str(k), *(own or {}).get(k, [])]
        return start_fast(path, runs, *flags, *mine, **options, **(env or {}).get(k, {}))

    return [begin(k) for k in range(count)]


def wait_all(jobs: list[Job], timeout: float = 240) -> list[Ended]:
    return [quiet(job.wait(timeout)) for job in jobs]


def quiet(ended: Ended) -> Ended:
    """Without the lines of gloo, which come from beyond this program."""
    ours = lambda text: "".join(x for x in text.splitlines(True) if not x.startswith(GLOO))
    return ended._replace(out=ours(ended.out), err=ours(ended.err))


def launch_all(path: Path, runs: Path, *flags: str, **options: Any) -> list[Ended]:
    return wait_all(start_all(path, runs, *flags, **options))


def finish_all(path: Path, runs: Path, *flags: str, **options: Any):
    """The run's folder, after a start that must end well."""
    for process, ended in enumerate(launch_all(path, runs, *flags, **options)):
        assert ended.code == 0, f"process {process}: exit code {ended.code}: {ended.err[-2000:]}"
    return of(path, runs)


def restored_by_all(run: RunFolder, step: int, again: Path, count: int) -> str:
    """`digest` of a checkpoint that so many processes have restored and saved again."""
    address = f"127.0.0.1:{free_port()}"
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from process_runs import save_again_with\n"
        f"save_again_with({address!r}, {count}, int(sys.argv[1]), "
        f"{str(run.checkpoints)!r}, {step}, {str(again / 'checkpoints')!r})"
    )
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    begin = lambda k: subprocess.Popen([sys.executable, "-c", code, str(k)], env=os.environ | flags)
    for process in [begin(k) for k in range(count)]:
        assert process.wait(120) == 0
    return digest(run_folder(again), step)


def save_again_with(address: str, count: int, own: int, *where: Any) -> None:
    """`save_again` in one of the processes."""
    with processes.joined(ProcessArgs(address, count, own), Preemption()):
        save_again(*where)
