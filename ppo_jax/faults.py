"""Faults on demand, for the tests alone: PPO_JAX_FAULT=ACTION@POINT[:N].

The N-th time (the first, if it is not said) that the process comes by POINT, ACTION happens to it.
Without the variable a point is one comparison.
"""

import errno
import os
import signal

ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
}
POINTS = frozenset("compile step reward save_begin save_mid save_commit gc metrics".split())

_asked = os.environ.get("PPO_JAX_FAULT")
_passed: dict[str, int] = {}


def point(name: str) -> None:
    """The process comes by `name`. Raises OSError (no space left) for the action `full`."""
    if _asked is None:
        return
    action, _, where = _asked.partition("@")
    where, _, number = where.partition(":")
    if name != where:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != int(number or 1):
        return
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    ACTIONS[action]()
