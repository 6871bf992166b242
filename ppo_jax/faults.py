"""Faults on demand, for the tests alone: PPO_JAX_FAULT=ACTION@POINT[:N].

The N-th time (the first, if it is not said) that the process comes by POINT, ACTION happens to it.
Without the variable a point is one comparison.
"""

import errno
import os
import re
import signal

ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
}
POINTS = "compile step reward save_begin save_mid save_commit gc metrics".split()


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS["full"] = _full
_asked = os.environ.get("PPO_JAX_FAULT")
if _asked is not None:
    _found = re.fullmatch(rf"({'|'.join(ACTIONS)})@({'|'.join(POINTS)})(?::(\d+))?", _asked)
    if _found is None:
        raise ValueError(f"PPO_JAX_FAULT={_asked}: expected one of {ACTIONS.keys()} @ {POINTS}")
    _act, _where, _left = ACTIONS[_found[1]], _found[2], int(_found[3] or 1)


def point(name: str) -> None:
    """The process comes by `name`. Raises OSError (no space left) for the action `full`."""
    global _left
    if _asked is not None and name == _where:
        _left -= 1
        if _left == 0:
            _act()
