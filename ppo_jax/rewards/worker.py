"""The process that runs host rewards: it may hang, die or print without harm to the run.

    python -m ppo_jax.reward_process EXPERIMENT.py REQUESTS ANSWERS MARK

The last three are numbers of inherited file descriptors. A line of JSON is a message; MARK's first
four bytes say which row the reward stands at. What a reward prints goes to stderr. The process
ends with its parent, whichever way that ends.
"""

import contextlib
import ctypes
import faulthandler
import json
import mmap
import os
import random
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

PR_SET_PDEATHSIG = 1
MARK = struct.Struct("i")


def main(words: list[str], load_parts: Callable[[str], Iterable[Any]]) -> None:
    """Answer requests until there are no more; `load_parts` gives the `Part`s of an experiment."""
    path, requests, answers, mark = words[0], int(words[1]), int(words[2]), int(words[3])
    _die_with_parent()
    # The run is told to end, and ends this process when it has no more use for it. Not SIG_IGN,
    # which what a reward starts would inherit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.dup2(2, 1)
    # Its stack goes to the log before it is ended for taking too long.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    place = mmap.mmap(mark, MARK.size)
    note = lambda row, *_: MARK.pack_into(place, 0, row)
    with open(requests, encoding="utf-8") as incoming, open(answers, "wb", buffering=0) as outgoing:
        parts = _load(path, load_parts, outgoing)
        own = os.getpid()
        _send(outgoing, {"ready": own})
        for line in incoming:
            answer = _answer(parts, json.loads(line), note)
            if os.getpid() != own:  # a child that a reward has forked and lost
                os._exit(1)
            _send(outgoing, answer)


def _load(path: str, load_parts: Callable[[str], Iterable[Any]], outgoing: Any) -> dict[str, Any]:
    """The parts of the experiment's reward by name; why there are none is said before it raises."""
    from ppo_jax.errors import PPOJaxError
    from ppo_jax.text import one_line

    try:
        return {part.name: part for part in load_parts(path)}
    except PPOJaxError as error:
        _send(outgoing, {"raised": one_line(error)})
        raise


def _answer(parts: Mapping[str, Any], request: Mapping[str, Any], note: Callable[[int], None]):
    """The message that answers a request; nothing a reward raises ends the process."""
    from ppo_jax.errors import RewardError
    from ppo_jax.rewards.host import Rows, call
    from ppo_jax.text import one_line

    # So a reward that draws from the global generators does so alike in a run that was resumed.
    random.seed(request["seed"])
    np.random.seed(request["seed"])
    options = {"on_error": request["on_error"], "seconds": request["seconds"], "mark": note}
    note(-1)
    try:
        found = call(parts[request["reward"]], Rows(*request["rows"]), **options)
    except RewardError as error:
        traceback.print_exception(error.__cause__ or error)
        return {"raised": one_line(error)}
    finally:
        with contextlib.suppress(Exception):  # closed by the reward, or on a full disk
            sys.stdout.flush()
            sys.stderr.flush()
    scores = {name: values_B.tolist() for name, values_B in found.scores.items()}
    return {"scores": scores, "failed": list(found.failed.items())}


def _send(outgoing: Any, message: Mapping[str, Any]) -> None:
    outgoing.write(json.dumps(message).encode() + b"\n")


def _die_with_parent() -> None:
    parent = os.getppid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux; elsewhere the pipe's end ends it
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that took hold
            os._exit(1)
