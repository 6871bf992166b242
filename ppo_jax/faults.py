"""Faults on demand, for the tests alone: PPO_JAX_FAULT=ACTION@POINT[:N].

The N-th time (the first, if it is not said) that the process comes by POINT, ACTION happens to it.
Without the variable a point is one comparison.
"""

import errno
import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
}
POINTS = "compile step reward save_begin save_mid save_commit gc restore metrics".split()


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS["full"] = _full


class Armed(NamedTuple):
    act: Callable[[], None]
    where: str
    passing: Iterator[int]  # counts how often it has come by
    number: int


def parse(asked: str) -> Armed:
    """ValueError for what is no fault, which would never come about."""
    found = re.fullmatch(rf"({'|'.join(ACTIONS)})@({'|'.join(POINTS)})(?::(\d+))?", asked)
    if found is None:
        raise ValueError(f"PPO_JAX_FAULT={asked}: expected one of {[*ACTIONS]} @ one of {POINTS}")
    return Armed(ACTIONS[found[1]], found[2], itertools.count(1), int(found[3] or 1))


_armed = parse(os.environ["PPO_JAX_FAULT"]) if "PPO_JAX_FAULT" in os.environ else None


def point(name: str) -> None:
    """The process comes by `name`. Raises OSError (no space left) for the action `full`."""
    if _armed is not None and name == _armed.where and next(_armed.passing) == _armed.number:
        _armed.act()
