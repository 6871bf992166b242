"""The lock of a run folder: one holder, named to the others, and gone with its process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ppo_jax import lock
from ppo_jax.errors import LockedError, StorageError

# Holds the folder, starts a child if it is told to, says so, and waits for its end.
HOLD = """
import subprocess, sys
from pathlib import Path
from ppo_jax import lock
with lock.hold(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "100"]).pid if "child" in sys.argv else 0
    print(child, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(root, *words):
    """(the process that holds `root`, the pid of its child)"""
    command = [sys.executable, "-c", HOLD, str(root), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if child:
                os.kill(child, signal.SIGKILL)


def refused(root):
    with pytest.raises(LockedError) as raised, lock.hold(root):
        pass
    assert raised.value.exit_code == 5 and "\n" not in str(raised.value)
    return str(raised.value)


def is_free(root):
    with lock.hold(root):
        return True


def test_the_second_of_two_is_told_who_the_first_is(tmp_path):
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with holder(tmp_path) as (process, _):
        after = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        content = json.loads((tmp_path / lock.NAME).read_text())
        assert (content["pid"], content["host"]) == (process.pid, socket.gethostname())
        assert before <= content["started"] <= after
        for _ in range(2):  # being refused takes nothing from the one that has it
            message = refused(tmp_path)
            for part in (f"process {process.pid}", content["host"], content["started"]):
                assert part in message
            assert message.startswith(f"run folder {tmp_path}: locked by")
        assert json.loads((tmp_path / lock.NAME).read_text()) == content
        process.communicate("")
        assert process.returncode == 0 and is_free(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_no_lock(tmp_path, number):
    with holder(tmp_path) as (process, _):
        refused(tmp_path)
        process.send_signal(number)
        process.wait()
        assert is_free(tmp_path)


def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    with holder(tmp_path, "child") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is still there
        assert is_free(tmp_path)


def test_one_process_holds_it_once(tmp_path):
    with lock.hold(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    assert is_free(tmp_path)
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path):
        raise ZeroDivisionError
    assert is_free(tmp_path)


def test_other_folders_are_free(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with lock.hold(tmp_path / "a"):
        assert is_free(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 3}', "\0" * 5000, "\xff"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path, content):
    with lock.hold(tmp_path):
        (tmp_path / lock.NAME).write_bytes(content.encode("latin-1"))
        assert refused(tmp_path).endswith("locked by another process; one run at a time")


def test_a_long_name_of_an_earlier_holder_does_not_remain(tmp_path):
    (tmp_path / lock.NAME).write_text("x" * 10_000)
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_folders_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / lock.NAME).mkdir(parents=True)
    for name in ("nowhere", "file", "folder"):
        with pytest.raises(StorageError, match=f"{name}/lock: cannot be opened") as raised:
            is_free(tmp_path / name)
        assert raised.value.exit_code == 6
