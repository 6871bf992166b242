"""One side of the comparison: a process that runs one iteration whenever it is told to.

With `--serve` it reads a command a line from stdin (`iterate`, `memory`) and answers each, and its
own start, by one line of JSON; the end of stdin is the end of the work. Without, it gives itself
the commands and prints one line of JSON at the end. All other output goes to stderr. Standard
library alone: the peers' environments run this file too.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

QUIET = 0.15  # CPUs that others may take in an iteration that counts as undisturbed


class Stop(Exception):
    """Raised inside of a trainer's own loop when no more iterations are wanted."""


class Session(NamedTuple):
    next_command: Callable[[], str | None]  # waits; None: the end
    say: Callable[[dict[str, Any]], None]
    finish: Callable[[], None]


class Mark(NamedTuple):
    """Clocks at the start of an iteration, seconds."""

    wall: float
    cpu: float
    machine: float


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workload", default="W1", help="W1, W2, W3, W4 or G1")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the workload's own")
    parser.add_argument("--serve", action="store_true", help="take commands from stdin")
    parser.add_argument("--iterations", type=int, default=5, help="timed ones, without --serve")
    parser.add_argument("--warmup", type=int, default=2, help="untimed ones before them")
    parser.add_argument("--memory", action="store_true", help="then one that counts tensor bytes")
    parser.add_argument("--prompts", help="file with a JSON list of token ids a line")
    return parser


def open_session(arguments: argparse.Namespace) -> Session:
    """Keep stdout for the answers: whatever else writes there from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout.flush()
    os.dup2(2, 1)

    def write(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    if arguments.serve:
        return Session(lambda: sys.stdin.readline().strip() or None, write, lambda: None)
    commands = iter(["iterate"] * (arguments.warmup + arguments.iterations))
    if arguments.memory:
        commands = iter([*commands, "memory"])
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)

    def finish() -> None:
        write(summary(lines, arguments.warmup))

    return Session(lambda: next(commands, None), say, finish)


def summary(lines: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Facts, medians over the timed iterations, and every figure behind them."""
    result: dict[str, Any] = dict(lines[0])
    rows = [line for line in lines[1:] if "wall_s" in line]
    timed = rows[warmup:]
    for key in ("wall_s", "cpu_s", "tokens", "optimizer_steps"):
        result[key] = statistics.median(row[key] for row in timed)
    result["phases"] = {
        name: statistics.median(row["phases"][name] for row in timed) for name in timed[0]["phases"]
    }
    result["undisturbed"] = sum((row["others_cpu"] or 0.0) < QUIET for row in timed)
    result["peak_rss_bytes"] = max((row["rss_bytes"] or 0) for row in timed)
    for line in lines[1:]:
        if "wall_s" not in line:
            result |= line
    result["iterations"] = rows
    return result


def start() -> Mark:
    reset_peak_rss()
    return Mark(time.perf_counter(), time.process_time(), machine_cpu())


def iteration_line(
    mark: Mark, *, tokens: int, optimizer_steps: int, phases: dict[str, float] | None = None
) -> dict[str, Any]:
    """The answer to `iterate`: seconds since `mark`, CPU seconds of all threads of the process."""
    wall, cpu = time.perf_counter() - mark.wall, time.process_time() - mark.cpu
    machine = machine_cpu() - mark.machine
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "others_cpu": max(0.0, machine - cpu) / wall if machine > 0.0 else None,  # CPUs
        "phases": phases or {},
        "tokens": tokens,
        "optimizer_steps": optimizer_steps,
        "rss_bytes": peak_rss_bytes(),  # largest of this iteration
    }


def machine_cpu() -> float:
    """Seconds that all CPUs of the machine have worked; 0 where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int | None:
    """Largest resident size since the last reset; None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(lines[0][1]) * 1024


def reset_peak_rss() -> None:
    """Let the peak begin at what is resident now: compilation and imports are then behind it."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # then it stays the peak of the process
