"""Seconds of an iteration's phases, read off a profile of the compiled programs.

The fused step is one program: nothing on the host sees where its rollout ends. The profiler does,
since every operation carries the `jax.named_scope` it was traced under.
"""

import re
import resource
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

# scope in step.py -> metric
PHASES = {
    "rollout": "time/rollout",
    "scoring": "time/score",
    "reward": "time/reward",
    "update": "time/update",
}
MODULE = re.compile(r"^HloModule ([\w.\-]+)", re.M)


def profiled(work: Callable[[], Any], programs: Iterable[str]) -> tuple[Any, dict[str, float]]:
    """Run `work` to its end under the profiler: (its result, seconds by phase).

    `programs` are the texts of the compiled programs it runs. A phase's seconds are the time in
    which at least one of its operations ran, on the device where that was longest.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            result = jax.block_until_ready(work())
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        return result, phase_seconds(traces, operation_phases(programs))


def operation_phases(programs: Iterable[str]) -> dict[tuple[str, str], str]:
    """(program, operation) -> scope, for the operations that stand in one of the PHASES."""
    phases = {}
    for text in programs:
        module = MODULE.search(text)
        for line in text.splitlines():
            name = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
            scopes = re.search(r'op_name="([^"]*)"', line)
            if module is None or name is None or scopes is None:
                continue
            named = [scope for scope in scopes[1].split("/") if scope in PHASES]
            if named:
                phases[module[1], name[1]] = named[0]
    return phases


def phase_seconds(traces: Iterable[Path], phases: dict[tuple[str, str], str]) -> dict[str, float]:
    """Busy seconds by metric name; empty where the profile names none of the operations."""
    spans = defaultdict(list)
    for trace in traces:
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for event in (event for line in plane.lines for event in line.events):
                stats = dict(event.stats)
                phase = phases.get((stats.get("hlo_module"), stats.get("hlo_op")))
                if phase is not None:
                    device = (plane.name, stats.get("device_ordinal"))
                    span = (event.start_ns, event.start_ns + event.duration_ns)
                    spans[phase, device].append(span)
    seconds: dict[str, float] = {}
    for (phase, _), busy in spans.items():
        metric = PHASES[phase]
        seconds[metric] = max(seconds.get(metric, 0.0), union_length(busy) * 1e-9)
    return seconds


def union_length(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals: nested and concurrent ones count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def peak_memory_bytes() -> int:
    """Most memory held so far: by the first device where it keeps count, else by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
