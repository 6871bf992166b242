"""Surroundings that are not as usual (F33)."""

import os
from pathlib import Path

from faults.launch import assert_same, experiment, finish
from faults.table import fault

CUT = """
import ctypes, os, pathlib
libc = ctypes.CDLL(None, use_errno=True)
refused = libc.unshare(0x40000000)  # CLONE_NEWNET
seen = f"not cut: refused by the kernel ({{os.strerror(ctypes.get_errno())}})" if refused else "cut"
pathlib.Path({path!r}).write_text(seen)
"""
LOOKS = 50  # at the clock before it jumps; a run looks some 180 times, most of them in its saves
# Not forward: a save in which more than 10 minutes pass by the clock is one that failed, to Orbax.
JUMP = """
import atexit, pathlib, time
looks, real, gmtime = [0], time.time, time.gmtime
def jumping():
    looks[0] += 1
    return real() - 86400 * (looks[0] > {looks})
time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
time.gmtime = lambda seconds=None: gmtime(jumping() if seconds is None else seconds)
atexit.register(lambda: pathlib.Path({path!r}).write_text(str(looks[0])))
"""


@fault(
    "F33",
    "odd surroundings",
    injected="another time zone, LANG=C, no HOME, a HOME that is missing or cannot be written (not "
    "as root), no network (a namespace without any, where the kernel lets us), another hash seed, "
    "a clock (as Python sees it) that jumps back a day in the midst",
    expected="the same metrics, samples and state",
)
def odd_surroundings(folder: Path) -> str:
    path = experiment(folder, run__iterations=8, run__checkpoint_every=4, run__compile_cache=None)
    whole, seen = finish(path, folder / "whole"), []
    (folder / "closed").mkdir(mode=0o500)
    (folder / "cut").write_text("not cut: unshare was not called")
    nowhere = {"first": CUT.format(path=str(folder / "cut"))}
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        JUMP.format(path=str(folder / "looks"), looks=LOOKS)
    )
    python_path = f"{folder / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for name, env in {
        "TZ": {"TZ": "Pacific/Chatham", "SOURCE_DATE_EPOCH": "0"},
        "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "HOME not writable": {"HOME": str(folder / "closed")},
        "HOME missing": {"HOME": str(folder / "none")},
        "no HOME": {"first": "import os; del os.environ['HOME']"},
        "no network": nowhere,
        "jumping clock": {"PYTHONPATH": python_path},
        "PYTHONHASHSEED": {"PYTHONHASHSEED": "7"},
    }.items():
        runs = folder / str(len(seen))
        assert_same(finish(path, runs, **env), whole)
        seen.append(name)
    # The cache of compiled programs in a home that is not there.
    cached = experiment(folder, name="cached", run__iterations=2, run__compile_cache="~/cache")
    finish(cached, folder / "cached", HOME=str(folder / "none" / "x"))
    cut = (folder / "cut").read_text()
    seen[seen.index("no network")] = f"network {cut}"
    looks = int((folder / "looks").read_text())
    assert looks > 2 * LOOKS, f"the clock was looked at {looks} times only"
    return f"{', '.join(seen)}: the same (as user {os.geteuid()})"
