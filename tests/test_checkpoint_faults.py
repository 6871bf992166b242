"""Saves that fail and processes that die: what is left counts for nothing, and goes."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from ppo_jax import faults, manifest, storage
from ppo_jax.checkpoint import check, open_saver, save, settle, wait
from ppo_jax.errors import CheckpointError, StorageError
from ppo_jax.restore import restore_params
from test_checkpoint import assert_same, make_state, names, no_late_garbage, parts


@pytest.fixture(autouse=True)
def _no_late_garbage():
    with no_late_garbage():
        yield


@contextlib.contextmanager
def small_files(limit=50_000):
    """No file can grow beyond `limit` bytes: as a full disk, but of this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_killed_process_left_goes(tmp_path):
    """It died in the middle of a save: Orbax may or may not have been done, the record was not."""
    (tmp_path / "7" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    with open_saver(tmp_path / "other", keep=2) as saver:
        save(saver, 9, make_state())
    shutil.move(tmp_path / "other" / "9", tmp_path / "9")
    shutil.rmtree(tmp_path / "other")
    for name in ("7.unfinished", "8.unfinished", "9.unfinished"):  # 8: died at once
        (tmp_path / name).touch()
    assert manifest.latest_step(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        restore_params(tmp_path)
    (tmp_path / "mine.unfinished").touch()  # of no step: somebody else's
    with open_saver(tmp_path, keep=2) as saver:
        assert saver.durable is None and names(tmp_path) == ["mine.unfinished"]
        save(saver, 7, make_state())
    assert names(tmp_path) == [*parts(7), "mine.unfinished"]


def test_a_half_written_record_goes(tmp_path):
    (tmp_path / "7" / "state").mkdir(parents=True)
    for name in ("7.unfinished", ".7.json.4321.tmp"):
        (tmp_path / name).touch()
    with open_saver(tmp_path, keep=2):
        assert names(tmp_path) == []


def test_a_marker_beside_a_record_is_of_a_whole_checkpoint(tmp_path):
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 1, make_state())
    (tmp_path / "1.unfinished").touch()  # it died between its last two acts
    assert manifest.latest_step(tmp_path) == 1
    with open_saver(tmp_path, keep=2) as saver:
        assert saver.durable == 1
    assert names(tmp_path) == parts(1)
    assert_same(restore_params(tmp_path), make_state().params)


def test_other_processes_leave_the_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo_jax.processes.index", lambda: 1)
    (tmp_path / "7.unfinished").touch()
    with open_saver(tmp_path, keep=2):
        assert names(tmp_path) == ["7.unfinished"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_run_still_saves_and_comes_out(tmp_path, error):
    state = make_state()
    with pytest.raises(error, match="mine"), open_saver(tmp_path, keep=2) as saver:
        save(saver, 2, state)
        raise error("mine")
    assert_same(restore_params(tmp_path, 2), state.params)
    with pytest.raises(error, match="mine"), open_saver(tmp_path, keep=2) as saver:
        with small_files():
            save(saver, 3, one_leaf())  # which fails: that is not the error to report
            settle(saver, 60.0)
        raise error("mine")
    assert names(tmp_path) == parts(2)


def test_an_interrupt_of_the_last_wait_loses_nothing(tmp_path, monkeypatch):
    """The save goes on in its thread: what it has written is not taken for a dead one's."""
    closed, write = threading.Event(), manifest.write_record

    def write_late(*words):
        assert closed.wait(60.0)
        write(*words)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "write_record", write_late)
    with pytest.raises(KeyboardInterrupt), open_saver(tmp_path, keep=2) as saver:
        save(saver, 2, make_state())
        monkeypatch.setattr("ppo_jax.checkpoint.wait", interrupted)
    closed.set()
    settle(saver, 60.0)
    assert saver.error is None and names(tmp_path) == parts(2)


def test_settle_waits_for_the_save_under_way(tmp_path):
    with open_saver(tmp_path, keep=2) as saver:
        settle(saver, 60.0)  # there is none
        save(saver, 2, make_state())
        settle(saver, 60.0)
        assert saver.durable == 2


def one_leaf(size=100_000):
    """One file that a small disk does not take, of noise, which no compression makes smaller."""
    return {"params": {"w": jax.random.normal(jax.random.key(0), (size,))}}


def test_a_save_that_fails_leaves_nothing_and_a_later_one_works(tmp_path):
    state, big = make_state(), one_leaf()
    with open_saver(tmp_path, keep=2) as saver:
        save(saver, 1, state)
        wait(saver)
        with small_files(), pytest.raises(StorageError, match="step 2 was not saved") as raised:
            save(saver, 2, big)
            wait(saver)
        assert "\n" not in str(raised.value) and raised.value.exit_code == 6
        wait(saver)  # said once
        left = sorted([*parts(1), "2.unfinished"])  # which is looked after once more at the end
        assert saver.durable == 1 and names(tmp_path) == left
        assert_same(restore_params(tmp_path), state.params)
        with small_files(), pytest.raises(StorageError, match="step 2 was not saved"):
            save(saver, 2, big)
            save(saver, 3, big)  # not started: the one before it failed
        assert names(tmp_path) == left
        save(saver, 2, big)
    assert names(tmp_path) == parts(1, 2)
    assert_same(restore_params(tmp_path), big["params"])


def test_leaving_says_that_the_last_save_failed(tmp_path):
    with pytest.raises(StorageError, match="step 1 was not saved") as raised, small_files():
        with open_saver(tmp_path, keep=2) as saver:
            save(saver, 1, one_leaf())
    assert "\n" not in str(raised.value) and names(tmp_path) == []


def test_check_says_what_has_failed_without_waiting(tmp_path):
    with open_saver(tmp_path, keep=2) as saver:
        with small_files():
            save(saver, 1, one_leaf())
            settle(saver, 60.0)
        with pytest.raises(StorageError, match="step 1 was not saved"):
            check(saver)
        check(saver)  # said once
        save(saver, 2, make_state())
        check(saver)
    assert names(tmp_path) == parts(2)


# On a disk without a byte left Orbax fails twice, also on its small _CHECKPOINT_METADATA, and says
# that at its next call. `small_files(100)` is such a disk: so is a tmpfs of 3 MiB, filled up.
FULL = 100


def test_a_save_does_not_fail_for_the_one_before(tmp_path):
    with open_saver(tmp_path, keep=2) as saver:
        with small_files(FULL), pytest.raises(StorageError, match="step 2 was not saved"):
            save(saver, 2, make_state())
            wait(saver)
        save(saver, 3, make_state())
    assert names(tmp_path) == parts(3)


def test_what_orbax_says_on_closing_is_not_the_error(tmp_path):
    with pytest.raises(StorageError, match="step 2 was not saved"):
        with open_saver(tmp_path, keep=2) as saver, small_files(FULL):
            save(saver, 2, make_state())
            settle(saver, 60.0)


class LateWrites:
    """Orbax as it is on a full disk: one of its writers has failed, another one still writes."""

    def save(self, target, **_):
        self.target = Path(target)

    def wait_until_finished(self):
        self.writer = threading.Timer(0.3, self.write)
        self.writer.start()
        raise OSError(28, "No space left on device")

    def write(self):
        self.target.mkdir(parents=True, exist_ok=True)

    def close(self):
        if hasattr(self, "writer"):
            self.writer.join()


def test_what_comes_after_the_removal_goes_too(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo_jax.checkpoint.ocp.AsyncCheckpointer", lambda *_, **__: LateWrites())
    with open_saver(tmp_path, keep=2) as saver:
        with pytest.raises(StorageError, match="No space left"):
            save(saver, 2, make_state())
            wait(saver)
    with open_saver(tmp_path, keep=2):
        assert names(tmp_path) == []


@pytest.mark.parametrize("number, tries", [(39, 4), (2, 4), (13, 1)])
def test_removing_what_is_still_written_is_tried_again(tmp_path, monkeypatch, number, tries):
    """ENOTEMPTY and ENOENT: something came, or went, meanwhile; EACCES stays what it is."""
    tried, remove_tree = [], storage.remove_tree

    def remove(folder):
        tried.append(folder)
        if len(tried) < tries or tries == 1:
            raise OSError(number, os.strerror(number))
        remove_tree(folder)

    monkeypatch.setattr(storage, "remove_tree", remove)
    monkeypatch.setattr(faults, "_armed", faults.parse("full@save_commit"))
    with open_saver(tmp_path, keep=1) as saver:
        with pytest.raises(StorageError, match="step 2 was not saved") as raised:
            save(saver, 2, make_state())
            wait(saver)
        assert len(tried) == tries
        assert ("nor can it be removed" in str(raised.value)) == (tries == 1)


QUIET = """
import sys
from test_checkpoint_faults import *
with open_saver(sys.argv[1], keep=2) as saver:
    for step in range(8):
        with small_files(), pytest.raises(StorageError):
            save(saver, step, make_state(width=50_000))
            wait(saver)
"""


def test_a_failed_save_says_nothing_of_its_own(tmp_path):
    """In a process of its own: pytest catches what asyncio and threads say."""
    command = [sys.executable, "-c", QUIET, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["save_begin", "save_commit"])
def test_a_full_disk(tmp_path, monkeypatch, where):
    state = make_state()
    with open_saver(tmp_path, keep=1) as saver:
        save(saver, 1, state)
        wait(saver)
        monkeypatch.setattr(faults, "_armed", faults.parse(f"full@{where}"))
        with pytest.raises(StorageError, match="step 2 was not saved .*No space left"):
            save(saver, 2, state)
            wait(saver)
        assert names(tmp_path) == sorted([*parts(1), "2.unfinished"])
        save(saver, 3, state)
    assert names(tmp_path) == parts(3)


def test_an_older_checkpoint_that_has_vanished(tmp_path):
    with open_saver(tmp_path, keep=2) as saver:
        for step in range(1, 3):
            save(saver, step, make_state())
        wait(saver)
        shutil.rmtree(tmp_path / "1")
        save(saver, 3, make_state())
        wait(saver)
        assert names(tmp_path) == parts(2, 3)
        (tmp_path / "2.json").unlink()
        shutil.rmtree(tmp_path / "2")
        save(saver, 4, make_state())
    assert names(tmp_path) == parts(3, 4)
