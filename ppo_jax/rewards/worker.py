"""The process that runs host rewards: it may hang, die or print without harm to the run.

    python -m ppo_jax.rewards.worker EXPERIMENT.py REQUESTS ANSWERS MARK

The last three are numbers of inherited file descriptors. A line of JSON is a message; MARK's first
four bytes say which row the reward stands at. What a reward prints goes to stderr. The process
ends with its parent, whichever way that ends.
"""

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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PR_SET_PDEATHSIG = 1
MARK = struct.Struct("i")


def main(words: list[str]) -> None:
    path, requests, answers, mark = words[0], int(words[1]), int(words[2]), int(words[3])
    _die_with_parent()
    os.dup2(2, 1)
    # Its stack goes to the log before it is ended for taking too long.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    from ppo_jax.experiment import load_experiment
    from ppo_jax.rewards.base import parse_rewards

    parts = {part.name: part for part in parse_rewards(load_experiment(path).reward)}
    place = mmap.mmap(mark, MARK.size)
    note = lambda row, *_: MARK.pack_into(place, 0, row)
    with open(requests, encoding="utf-8") as incoming, open(answers, "wb", buffering=0) as outgoing:
        _send(outgoing, {"ready": os.getpid()})
        for line in incoming:
            _send(outgoing, _answer(parts, json.loads(line), note))


def _answer(parts: Mapping[str, Any], request: Mapping[str, Any], note: Callable[[int], None]):
    """The message that answers a request; nothing a reward raises ends the process."""
    from ppo_jax.errors import RewardError, one_line
    from ppo_jax.rewards.host import Rows, call

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


if __name__ == "__main__":
    main(sys.argv[1:])
