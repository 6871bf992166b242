"""What a process of rewards needs as it starts: where it is not to be had the run ends with one
line, and is not killed."""

import errno
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import reward_toys
from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError, StorageError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import Pool, open_pool

TOYS = Path(reward_toys.__file__)
PARTS = {part.name: part for part in parse_rewards(reward_toys.REWARD)}
ROW = Rows([0], ["prompt"], ["text"], {})
BAD = ROW._replace(responses=["bad"])
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BUSY = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def fail(error):
    def function(*arguments, **options):
        raise error

    return function


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(act) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    assert caught.value.exit_code == 6 and "\n" not in str(caught.value)
    return str(caught.value)


def start_one(log: Path, **options) -> None:
    with open_pool(TOYS, log, RewardOptions(**options)):
        pass


@pytest.mark.parametrize("memory", [True, False])
def test_the_mark_has_its_block_from_the_start(tmp_path, monkeypatch, memory):
    """A hole that is filled at the first touch would end the run with SIGBUS on a full disk."""
    blocks, plain = [], mmap.mmap

    def seen(number, size):
        blocks.append(os.fstat(number).st_blocks)
        return plain(number, size)

    monkeypatch.setattr(mmap, "mmap", seen)
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    with open_pool(TOYS, tmp_path / "log", RewardOptions()) as pool:
        with pytest.raises(RewardError, match="exit code 3"):
            pool.call(PARTS["leaves"], BAD, 0)
        assert pool.call(PARTS["leaves"], ROW, 0).scores["leaves"] == [4.0]
    assert len(blocks) == 2 and all(blocks)


SCRIPT = """
import os, sys, tempfile
from pathlib import Path
from ppo_jax.config import RewardOptions
from ppo_jax.errors import StorageError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import reward_toys
tempfile.tempdir = sys.argv[3]  # it was full only later
(part,) = [p for p in parse_rewards(reward_toys.REWARD) if p.name == "leaves"]
if sys.argv[4] == "file":
    del os.memfd_create
try:
    with open_pool(Path(sys.argv[1]), Path(sys.argv[2]), RewardOptions()) as pool:
        print(pool.call(part, Rows([0], ["prompt"], ["text"], {}), 0).scores["leaves"])
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""
FILL = 'mount -t tmpfs -o size=4k tmpfs "$0" && head -c 4096 /dev/zero > "$0/all" && exec "$@"'


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_full_temporary_directory(tmp_path, kind):
    full = tmp_path / "full"
    full.mkdir()
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FILL, str(full)]
    if shutil.which("unshare") is None or subprocess.run([*within, "true"]).returncode != 0:
        pytest.skip("nothing can be mounted here")
    words = [sys.executable, "-c", SCRIPT, str(TOYS), str(tmp_path / "log"), str(full), kind]
    done = subprocess.run([*within, *words], capture_output=True, text=True)
    if kind == "memory":
        assert (done.returncode, done.stdout) == (0, "[4.]\n"), done.stderr
    else:
        assert done.returncode == 6, (done.returncode, done.stderr)
        assert str(full) in done.stdout and "No space left" in done.stdout


def a_folder(log, monkeypatch):
    log.mkdir()


def no_folder(log, monkeypatch):
    log.parent.rename(log.parent.with_name("elsewhere"))


def no_room(log, monkeypatch):
    monkeypatch.setattr(os, "memfd_create", fail(FULL), raising=False)
    monkeypatch.setattr(tempfile, "TemporaryFile", fail(FULL))


def no_bytes(log, monkeypatch):
    monkeypatch.setattr(os, "pwrite", fail(FULL))


def no_process(log, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", fail(BUSY))


def no_program(log, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(log.parent / "no-python"))


def no_pipe(log, monkeypatch):
    monkeypatch.setattr(os, "pipe", fail(OSError(errno.EMFILE, "Too many open files")))


STARTS = {
    a_folder: ("{log}: ", "Is a directory"),
    no_folder: ("{log}: ", "No such file"),
    no_room: (tempfile.gettempdir(), "No space left"),
    no_bytes: ("", "No space left"),
    no_process: ("{program}: ", "Resource temporarily unavailable"),
    no_program: ("{program}: ", "No such file"),
    no_pipe: ("{experiment}: ", "Too many open files"),
}


@pytest.mark.parametrize("harm", STARTS, ids=lambda harm: harm.__name__)
def test_what_lacks_at_the_start_is_said(tmp_path, monkeypatch, harm):
    log = tmp_path / "run" / "reward.log"
    log.parent.mkdir()
    before = open_files()
    harm(log, monkeypatch)
    message = refused(lambda: start_one(log, workers=2))
    names, why = STARTS[harm]
    shown = names.format(log=log, program=sys.executable, experiment=TOYS)
    assert message.startswith(shown) and why in message
    assert open_files() == before


@pytest.mark.parametrize("options", [{}, {"row_timeout": 30.0}], ids=str)
@pytest.mark.parametrize("on_error", ["abort", "mask"])
def test_what_lacks_when_it_starts_again_is_said(tmp_path, on_error, options):
    """The rows are not at fault: they are not masked."""
    log = tmp_path / "reward.log"
    both = Rows([0, 1], ["p", "q"], ["bad", "a"], {})
    with open_pool(TOYS, log, RewardOptions(on_error=on_error, **options)) as pool:
        pool.call(PARTS["leaves"], ROW, 0)
        log.rename(log.with_name("other.log"))
        log.mkdir()

        def call() -> None:
            if on_error == "abort":
                with pytest.raises(RewardError, match="exit code 3"):
                    pool.call(PARTS["leaves"], both, 0)
            pool.call(PARTS["leaves"], both, 0)

        message = refused(call)
        assert message.startswith(f"{log}: ") and "Is a directory" in message
        log.rmdir()  # mended
        assert pool.call(PARTS["leaves"], ROW, 0).scores["leaves"] == [4.0]


def test_no_thread_for_a_process_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("threading.Thread.start", fail(RuntimeError("can't start new thread")))
    message = refused(Pool(TOYS, tmp_path / "log", RewardOptions()).start)
    assert "can't start new thread" in message and str(TOYS) in message
