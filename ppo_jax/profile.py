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
from typing import Any, NamedTuple

import jax

# scope in step.py -> metric
PHASES = {
    "rollout": "time/rollout",
    "scoring": "time/score",
    "reward": "time/reward",
    "update": "time/update",
}
OTHER = "other"  # between phases: rewards, advantages, metrics, and the device waiting
MODULE = re.compile(r"^HloModule ([\w.\-]+)", re.M)
WORK = "ppo_jax: profiled work"

Span = tuple[float, float]  # start, end


class Timeline(NamedTuple):
    """Who had the device when, ns. `segments` follow each other without a gap from the first to the
    last operation of the device that was done last; before and after them the host is alone."""

    work: Span  # from the call to the result, on the host
    segments: list[tuple[float, float, str]]  # start, end, scope or OTHER; empty: nothing was named
    busy: list[Span]  # operations of that device, concurrent ones merged


def profiled(work: Callable[[], Any], programs: Iterable[str]) -> tuple[Any, dict[str, float]]:
    """Run `work` to its end under the profiler: (its result, seconds by metric of PHASES).

    `programs` are the texts of the compiled programs it runs.
    """
    result, timeline = record(work, programs)
    seconds: dict[str, float] = defaultdict(float)
    for start, end, phase in timeline.segments:
        if phase != OTHER:
            seconds[PHASES[phase]] += (end - start) * 1e-9
    return result, dict(seconds)


def record(work: Callable[[], Any], programs: Iterable[str]) -> tuple[Any, Timeline]:
    """As `profiled`, with the whole timeline."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would slow the host down
    with tempfile.TemporaryDirectory() as folder:
        with (
            jax.profiler.trace(folder, profiler_options=options),
            jax.profiler.TraceAnnotation(WORK),
        ):
            result = jax.block_until_ready(work())
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        return result, read_timeline(traces, operation_phases(programs))


def operation_phases(programs: Iterable[str]) -> dict[tuple[str, str], str | None]:
    """(program, operation) -> its scope among PHASES; None for one that stands in none of them."""
    phases: dict[tuple[str, str], str | None] = {}
    for text in programs:
        module = MODULE.search(text)
        for line in text.splitlines():
            name = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
            if module is None or name is None:
                continue
            scopes = re.search(r'op_name="([^"]*)"', line)
            named = [scope for scope in scopes[1].split("/") if scope in PHASES] if scopes else []
            phases[module[1], name[1]] = named[0] if named else None
    return phases


def read_timeline(traces: Iterable[Path], phases: dict[tuple[str, str], str | None]) -> Timeline:
    """The timeline of the programs whose operations are `phases`."""
    spans: dict[Any, list[tuple[float, float, str | None]]] = defaultdict(list)
    work = (0.0, 0.0)
    for trace in traces:
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for event in (event for line in plane.lines for event in line.events):
                start, end = event.start_ns, event.start_ns + event.duration_ns
                if event.name == WORK:
                    work = (start, end)
                stats = dict(event.stats)
                operation = (stats.get("hlo_module"), stats.get("hlo_op"))
                if operation in phases:
                    device = (plane.name, stats.get("device_ordinal"))
                    spans[device].append((start, end, phases[operation]))
    last = max(spans.values(), key=lambda found: max(end for _, end, _ in found), default=[])
    return Timeline(work, phase_segments(last), merged((s, e) for s, e, _ in last))


def phase_segments(
    spans: Iterable[tuple[float, float, str | None]],
) -> list[tuple[float, float, str]]:
    """(start, end, phase) of an operation -> of a phase, without gaps from the first to the last.

    A phase reaches from one of its operations to its next one, launches and nameless operations
    between them included; what lies between those of two phases, or outside of all, is OTHER.
    """
    spans = sorted(spans, key=lambda span: span[:2])
    named = [(start, end, phase) for start, end, phase in spans if phase is not None]
    if not named:
        return []
    reached = spans[0][0]
    segments: list[tuple[float, float, str]] = []

    def extend(end: float, phase: str) -> None:
        nonlocal reached
        if end > reached:
            begin = segments.pop()[0] if segments and segments[-1][2] == phase else reached
            segments.append((begin, end, phase))
            reached = end

    for start, end, phase in named:
        if not (segments and segments[-1][2] == phase):
            extend(start, OTHER)
        extend(end, phase)
    extend(max(end for _, end, _ in spans), OTHER)
    return segments


def merged(spans: Iterable[Span]) -> list[Span]:
    """The union of intervals as disjoint ones in order: nested and concurrent ones count once."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        elif end > start:
            union.append((start, end))
    return union


def overlap(spans: Iterable[Span], start: float, end: float) -> float:
    """Length of what disjoint intervals share with [start, end]."""
    return sum(max(0.0, min(e, end) - max(s, start)) for s, e in spans)


def peak_memory_bytes() -> int:
    """Most memory held so far: by the first device where it keeps count, else by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
