"""Surroundings that are not as usual (F33)."""

import os
from pathlib import Path

from faults.launch import assert_same, experiment, finish
from faults.table import fault


@fault(
    "F33",
    "odd surroundings",
    injected="another time zone, LANG=C, no HOME, a HOME that is missing or cannot be written (not "
    "as root), no network (a namespace without any, where the kernel lets us), another hash seed",
    expected="the same metrics, samples and state",
)
def odd_surroundings(folder: Path) -> str:
    path = experiment(folder, run__iterations=8, run__checkpoint_every=4, run__compile_cache=None)
    whole, seen = finish(path, folder / "whole"), []
    (folder / "closed").mkdir(mode=0o500)
    nowhere = {"first": "import ctypes; ctypes.CDLL(None).unshare(0x40000000)"}  # CLONE_NEWNET
    for name, env in {
        "TZ": {"TZ": "Pacific/Chatham", "SOURCE_DATE_EPOCH": "0"},
        "LANG=C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "HOME not writable": {"HOME": str(folder / "closed")},
        "HOME missing": {"HOME": str(folder / "none")},
        "no HOME": {"first": "import os; del os.environ['HOME']"},
        "no network": nowhere,
        "PYTHONHASHSEED": {"PYTHONHASHSEED": "7"},
    }.items():
        runs = folder / str(len(seen))
        assert_same(finish(path, runs, **env), whole)
        seen.append(name)
    # The cache of compiled programs in a home that is not there.
    cached = experiment(folder, name="cached", run__iterations=2, run__compile_cache="~/cache")
    finish(cached, folder / "cached", HOME=str(folder / "none" / "x"))
    return f"{', '.join(seen)}: the same (as user {os.geteuid()})"
