"""The lock of a run folder: one run at a time. The system frees it when its holder ends, however
that comes about, so nothing stale is left behind."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ppo_jax.errors import LockedError, StorageError
from ppo_jax.storage import staged

NAME = "lock"


@contextlib.contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold the folder's lock; on gs://, which has none, this machine's for it. Raises LockedError
    naming the process that has it."""
    path = staged(root) / NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"run folder {root}: {_holder(file)}; one run at a time") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked ({error.strerror})") from None
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(file)


def _holder(file: int) -> str:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return "locked by process {pid} on {host} since {started}".format(**holder)
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "locked by another process"
