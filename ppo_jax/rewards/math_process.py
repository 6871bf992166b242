"""Started by `rewards.math_answers`: compares answers by math-verify until its input ends.

A line of JSON [reference, response] is answered by a line: `1`, `0`, or `?` if the reference
cannot be read. What it may take is bounded by its memory here, and in time by who asks.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from typing import Any

MAX_BYTES = 4 << 30  # of address space: 9**9**9 ends in an error, not with the machine's memory
MAX_SECONDS = 60  # of processor time for a comparison: one that nobody waits for any more ends


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    _limit(resource.RLIMIT_AS, MAX_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    # It warns of every text that it cannot read, and that it has no time limit of its own: that
    # one rests on a signal, which does not end a calculation in C.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import math_verify  # pyright: ignore

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + MAX_SECONDS + 1)
        print(_compare(math_verify, *json.loads(line)), file=answers, flush=True)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    with contextlib.suppress(ValueError, OSError):  # above the hard one, or not of this system
        resource.setrlimit(what, (most, hard))


def _compare(math_verify: Any, reference: str, response: str) -> str:
    try:
        wanted = math_verify.parse(reference, parsing_timeout=None)
    except Exception:
        wanted = []
    if not wanted:
        return "?"
    try:
        found = math_verify.parse(response, parsing_timeout=None)
        return "1" if math_verify.verify(wanted, found, timeout_seconds=None) is True else "0"
    except Exception:  # a text it cannot read, or memory that is used up
        return "0"


if __name__ == "__main__":
    main()
