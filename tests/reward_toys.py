"""An experiment whose rewards misbehave in every way: at the rows that say `bad`, or always."""

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zlib

import jax
import numpy as np

from ppo_jax.config import Config

BASE = Config()


def raises():
    raise ValueError("no luck\nat all")


def spins():
    while True:
        pass


def sleeps():
    time.sleep(1000)


def locks():  # in C, where no signal handler of Python's runs
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def backtracks():  # in C, with the interpreter's lock held
    re.match(r"(a+)+$", "a" * 64 + "b")


def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


def exits():
    sys.exit(4)


def leaves():
    os._exit(3)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def aborts():
    os.kill(os.getpid(), signal.SIGSEGV)


def reads_nowhere():
    ctypes.string_at(1)


def closes():
    os.closerange(0, 256)
    return 1.0


def closes_and_spins():
    os.closerange(0, 256)
    spins()


def leaves_a_child():
    """Which holds the pipes open, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(20)
        os._exit(0)
    os._exit(3)


FAULTS = [raises, spins, sleeps, locks, backtracks, stops, exits, leaves, is_killed, aborts]
FAULTS += [reads_nowhere, closes, closes_and_spins, leaves_a_child]


def at_bad_rows(fault):
    def reward(prompts, responses):
        return [fault() if text == "bad" else float(len(text)) for text in responses]

    reward.__name__ = fault.__name__
    return reward


RETURNS = {
    "none": lambda size: None,
    "text": lambda size: "1" * size,
    "number": lambda size: 1.0,
    "short": lambda size: [1.0] * (size - 1),
    "long": lambda size: [1.0] * (size + 1),
    "nan": lambda size: [1.0] * (size - 1) + [float("nan")],
    "nothing": lambda size: [1.0] * (size - 1) + [None],
    "huge": lambda size: [1.0] * (size - 1) + [10**5000],  # more digits than Python writes
    "column": lambda size: np.ones((size, 1)),
    "keys": lambda size: {"a": [1.0] * size, "b": [float("inf")] * size},
}


def returning(name):
    def reward(prompts, responses):
        return RETURNS[name](len(prompts))

    reward.__name__ = name
    return reward


def numbers(prompts, responses, level, *, scale=2.0):
    scores = [scale * len(text) + value / 3 for text, value in zip(responses, level, strict=True)]
    return {"score": scores, "long": [len(text) > 2 for text in responses]}


def seeing(prompts, responses, **columns):
    """A number of all that a row is given, types included."""
    names = sorted(columns)
    rows = zip(prompts, responses, *(columns[name] for name in names), strict=True)
    return [zlib.crc32(repr((names, *row)).encode("ascii", "backslashreplace")) for row in rows]


def drawing(prompts, responses):
    return {
        "python": [random.random() for _ in prompts],
        "numpy": [np.random.normal() for _ in prompts],
    }


def printing(prompts, responses):
    print("x" * 10_000_000)
    os.write(1, b"y" * 10_000_000 + b"\n")
    print("to stderr \ud800", file=sys.stderr)
    sys.stdout.close()
    return [1.0] * len(prompts)


def about(prompts, responses):
    """What the process is, as numbers; a grandchild among it."""
    child = subprocess.Popen(["sleep", "1000"]).pid
    on_cpu = {device.platform for device in jax.devices()} == {"cpu"}
    hidden = os.environ["CUDA_VISIBLE_DEVICES"] == ""
    facts = {"pid": os.getpid(), "child": child, "cpu": on_cpu and hidden}
    return {name: [float(fact)] * len(prompts) for name, fact in facts.items()}


def forking(prompts, responses):
    """Both processes go on."""
    os.fork()
    return [float(len(text)) for text in responses]


def all_at_once(prompts, responses):
    """As a model would: nothing tells at which row it is."""
    texts = list(responses)
    if "bad" in texts:
        spins()
    return [float(len(text)) for text in texts]


def either(prompts, responses):
    return [{"bad": spins, "worse": raises}.get(text, lambda: 1.0)() for text in responses]


REWARD = [
    *map(at_bad_rows, FAULTS),
    *map(returning, RETURNS),
    *(numbers, seeing, drawing, printing, about, forking, all_at_once, either),
]
