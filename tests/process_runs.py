"""Runs of several processes on this machine, each with fake CPU devices, joined by gloo."""

import contextlib
import socket
from pathlib import Path
from typing import Any

from faults.launch import Ended, Job, of, start

JOIN_SECONDS = "120"
GLOO = "[Gloo] "  # the network of the devices says what it is connected to


def free_port() -> int:
    with contextlib.closing(socket.create_server(("", 0))) as listener:
        return listener.getsockname()[1]


def start_all(
    path: Path,
    runs: Path,
    *flags: str,
    count: int = 2,
    env: dict[int, dict] | None = None,
    **options: Any,
) -> list[Job]:
    """The processes of one run; `env` has variables for some of them."""
    address = f"127.0.0.1:{free_port()}"
    which = lambda k: ["--coordinator", address, "--processes", str(count), "--process", str(k)]
    flags = (*flags, "--join_seconds", JOIN_SECONDS)
    more = lambda k: (env or {}).get(k, {})
    return [start(path, runs, *which(k), *flags, **options, **more(k)) for k in range(count)]


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
