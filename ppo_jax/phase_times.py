"""Where the seconds of one iteration go: by phase, wall and CPU, beside the work and its floor."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.ceilings import Ceilings
from ppo_jax.cost import Work, floor_seconds
from ppo_jax.profile import OTHER, Timeline, overlap, record

SCOPES = {"rollout": "rollout", "scoring": "score", "update": "update"}  # scope -> phase
HOST = "host_gap"  # before the device's first operation and after its last
PHASES = (*SCOPES.values(), OTHER, HOST)
SAMPLING = 0.005  # seconds between two looks at the process's CPU time


class Profile(NamedTuple):
    """An iteration's timeline, and the process's CPU time on the same clock."""

    timeline: Timeline
    clock_N: np.ndarray  # ns
    cpu_N: np.ndarray  # ns


def profile_phases(work: Callable[[], Any], programs: Iterable[str]) -> tuple[Any, Profile]:
    """Run `work` to its end under the profiler; `programs` as for `profile.record`."""
    began = []

    def marked():
        began.append(time.perf_counter_ns())
        return work()

    with cpu_samples() as samples:
        result, timeline = record(marked, programs)
    clock_N, cpu_N = np.asarray(samples, np.float64).T
    return result, Profile(timeline, clock_N - began[0] + timeline.work[0], cpu_N)


@contextmanager
def cpu_samples() -> Iterator[list[tuple[int, int]]]:
    """(clock, CPU time of the process), ns, looked at again and again by a thread."""
    samples: list[tuple[int, int]] = []
    stop = threading.Event()
    look = lambda: samples.append((time.perf_counter_ns(), time.process_time_ns()))

    def watch() -> None:
        while not stop.wait(SAMPLING):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    look()
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        look()


def phase_seconds(profile: Profile) -> dict[str, dict[str, float]]:
    """`seconds`, `busy_s` (operations running) and `cpu_s` of each of PHASES.

    The seconds sum to those from the call to the result.
    """
    (begin, end), segments, busy = profile.timeline
    first, last = (segments[0][0], segments[-1][1]) if segments else (end, end)
    parts = [(begin, first, HOST), (last, end, HOST)]
    parts += [(start, stop, SCOPES.get(scope, OTHER)) for start, stop, scope in segments]
    found = {phase: {"seconds": 0.0, "busy_s": 0.0, "cpu_s": 0.0} for phase in PHASES}
    for start, stop, phase in parts:
        cpu = np.interp([start, stop], profile.clock_N, profile.cpu_N)
        found[phase]["seconds"] += (stop - start) * 1e-9
        found[phase]["busy_s"] += overlap(busy, start, stop) * 1e-9
        found[phase]["cpu_s"] += float(cpu[1] - cpu[0]) * 1e-9
    return found


def beside_floor(
    phases: dict[str, dict[str, float]],
    work: dict[str, Work],
    tokens: int,
    ceilings: Ceilings,
    *,
    devices: int,
    on_cpu: bool,
) -> dict[str, dict[str, float]]:
    """The phases with their work, response tokens a second and the share of what `devices` devices
    of these ceilings allow; where the CPU is the device, in CPU seconds too."""
    result = {}
    for phase, times in phases.items():
        facts: dict[str, float] = dict(times)
        if phase in work:
            # Fake devices of one CPU share its cores.
            count = 1 if on_cpu else devices
            wall = [rate.per_second * count for rate in (ceilings.flops, ceilings.bytes)]
            facts |= {"flops": work[phase].flops, "bytes": work[phase].bytes}
            facts["tokens_per_s"] = _share(tokens, times["seconds"])
            facts |= _shares("", work[phase], times["seconds"], *wall)
            if on_cpu:
                own = [rate.per_cpu_second for rate in (ceilings.flops, ceilings.bytes)]
                facts |= _shares("cpu_", work[phase], times["cpu_s"], *own)
        result[phase] = facts
    return result


def _shares(
    prefix: str, work: Work, seconds: float, flops_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    floor = floor_seconds(work, flops_per_s, bytes_per_s)
    return {
        f"{prefix}floor_s": floor,
        f"{prefix}floor_fraction": _share(floor, seconds),
        f"{prefix}matmul_fraction": _share(work.flops / flops_per_s, seconds),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
