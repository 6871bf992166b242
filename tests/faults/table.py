"""What a row of the table is, and how it is run."""

import importlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MODULES = (
    "kills damage storage numbers rewards inputs folders environment".split()
)  # each adds its rows


class Fault(NamedTuple):
    number: str
    name: str
    injected: str
    expected: str
    check: Callable[[Path], str]  # an empty folder -> what was seen; AssertionError: not that
    fast: bool  # in the subset that `make test` runs


class Seen(NamedTuple):
    number: str
    seen: str
    passed: bool
    seconds: float


_ROWS: list[Fault] = []


def fault(number: str, name: str, *, injected: str, expected: str, fast: bool = False):
    """Make a check a row of the table."""

    def add(check: Callable[[Path], str]) -> Callable[[Path], str]:
        _ROWS.append(Fault(number, name, injected, expected, check, fast))
        return check

    return add


def table() -> list[Fault]:
    """All rows, in order."""
    for module in MODULES:
        importlib.import_module(f"faults.{module}")
    digits = lambda case: int("".join(c for c in case.number if c.isdigit()))
    return sorted(_ROWS, key=lambda case: (digits(case), case.number))


def find(number: str) -> Fault:
    return next(case for case in table() if case.number == number)


def run(number: str, folder: Path) -> Seen:
    """Run one row; whatever goes wrong in it is a row that did not pass."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        seen, passed = find(number).check(folder), True
    except Exception as error:
        traceback.print_exc()
        seen, passed = f"{type(error).__name__}: {error}", False
    return Seen(number, " ".join(seen.split()), passed, time.monotonic() - began)
