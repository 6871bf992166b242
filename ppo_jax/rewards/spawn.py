"""Starting the process of `rewards.worker`, with what it shares with the run."""

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ppo_jax.errors import StorageError
from ppo_jax.rewards.worker import MARK


class Spawned(NamedTuple):
    """A process, and the run's ends of what leads there."""

    process: subprocess.Popen
    requests: int  # descriptor to write to, which never waits
    answers: int  # descriptor to read from
    mark: mmap.mmap


def spawn(experiment: Path, log: Path) -> Spawned:
    """Start the process for the reward of an experiment; what it prints is added to `log`.

    Raises StorageError, and leaves nothing open, if the system does not give what that needs.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        with _said(f"{experiment}: no pipe to the process of its reward can be opened"):
            requests_out, requests = _pipe(theirs, ours)
            answers, answers_in = _pipe(ours, theirs)
        os.set_blocking(requests, False)
        file = theirs.enter_context(_mark_file())
        with _said(f"{experiment}: no memory to share with the process of its reward"):
            mark = ours.enter_context(mmap.mmap(file.fileno(), MARK.size))
        with _said(f"{log}: cannot be opened to write"):
            output = theirs.enter_context(log.open("ab"))
        inherited = [requests_out, answers_in, file.fileno()]
        with _said(f"{sys.executable}: cannot be started as the process of a reward"):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ppo_jax.reward_process", str(experiment)),
                    *map(str, inherited),
                ],
                # No accelerator: the run's own process has it.
                env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is the run's to handle
            )
        ours.pop_all()  # open until the process is stopped
    return Spawned(process, requests, answers, mark)


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """An OSError becomes a StorageError of this beginning."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what} ({error.strerror or error})") from None


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """The ends of a pipe to read and to write, each closed by its stack."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _mark_file() -> IO[bytes]:
    """A file for the mark, in memory where the system has such files."""
    with contextlib.suppress(AttributeError, OSError):
        return _filled(open(os.memfd_create("mark"), "r+b", buffering=0))
    try:
        return _filled(tempfile.TemporaryFile(buffering=0))
    except OSError as error:
        folder = tempfile.tempdir or "temporary files"
        raise StorageError(
            f"{folder}: no room for the mark of a process of rewards ({error.strerror or error})"
        ) from None


def _filled(file: IO[bytes]) -> IO[bytes]:
    """The file with its bytes in place: a hole takes room at the first touch of its mapping, and
    where there is none left that ends the run with SIGBUS."""
    try:
        os.pwrite(file.fileno(), MARK.pack(-1), 0)
    except OSError:
        file.close()
        raise
    return file
