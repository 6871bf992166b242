"""Memory, bandwidth and arithmetic of devices: of accelerators by the book, of this CPU by a
measurement of about a second."""

import difflib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_jax.errors import ConfigError

BOOK = "https://jax-ml.github.io/scaling-book/tpus"
SHEET = "NVIDIA's data sheet"
MEASURE_SECONDS = 0.4  # of each of the two measurements
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Chip(NamedTuple):
    """One device."""

    name: str
    platform: str  # cpu, gpu or tpu
    memory_bytes: float
    bytes_per_s: float  # between its memory and its arithmetic
    flops_per_s: float  # bfloat16, dense, at its peak; of a CPU float32, as measured
    source: str


TABLE = {
    chip.name: chip
    for chip in (
        Chip("b200", "gpu", 180e9, 8.0e12, 2.25e15, SHEET),
        Chip("h200", "gpu", 141e9, 4.8e12, 9.89e14, SHEET),
        Chip("h100", "gpu", 80e9, 3.35e12, 9.89e14, SHEET),
        Chip("a100", "gpu", 80e9, 2.0e12, 3.12e14, SHEET),
        Chip("v4", "tpu", 32e9, 1.2e12, 2.75e14, BOOK),
        Chip("v5e", "tpu", 16e9, 8.1e11, 1.97e14, BOOK),
        Chip("v5p", "tpu", 96e9, 2.8e12, 4.59e14, BOOK),
        Chip("v6e", "tpu", 32e9, 1.6e12, 9.2e14, BOOK),
    )
}
NAMES = (*TABLE, "cpu")


def find_chip(name: str) -> Chip:
    """The device of that name, `cpu` measured here and now; ConfigError with the nearest."""
    if name == "cpu":
        return measure_cpu()
    if name not in TABLE:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"device={name}: expected one of {', '.join(NAMES)}; nearest: {near}")
    return TABLE[name]


def measure_cpu(seconds: float = MEASURE_SECONDS) -> Chip:
    """This machine: float32 products of square matrices, copies of arrays beyond its caches."""
    side, size = 1024, 2**25
    left, right, product = (np.ones((side, side), np.float32) for _ in range(3))
    source, target = np.ones(size, np.float32), np.zeros(size, np.float32)
    multiply = lambda: np.matmul(left, right, out=product)
    copy = lambda: np.copyto(target, source)
    flops = 2.0 * side**3 / _best(multiply, seconds)
    moved = 2.0 * source.nbytes / _best(copy, seconds)  # read and written
    return Chip("cpu", "cpu", memory_here(), moved, flops, "measured here, all cores")


def memory_here() -> float:
    """Bytes of this machine, or what its container may use of them."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return float(min(physical, int(CGROUP_LIMIT.read_text())))
    except (OSError, ValueError):  # no such limit, or the word "max"
        return float(physical)


def _best(work: Callable[[], object], seconds: float) -> float:
    """Fewest seconds of a call, among those that fit into `seconds`; at least three."""
    times, began = [], time.monotonic()
    while len(times) < 3 or time.monotonic() - began < seconds:
        start = time.monotonic()
        work()
        times.append(time.monotonic() - start)
    return min(times)
