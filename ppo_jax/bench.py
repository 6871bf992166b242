"""Timing workloads: seconds of an iteration and of its phases, beside what the device allows."""

import hashlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import bench_report
from ppo_jax.arguments import BenchArgs
from ppo_jax.ceilings import measure_ceilings
from ppo_jax.config import Config
from ppo_jax.config_io import diff, to_dict
from ppo_jax.cost import Lengths, phase_work
from ppo_jax.errors import ConfigError, PPOJaxError
from ppo_jax.experiment import WORKLOADS, Experiment, list_experiments, load_experiment
from ppo_jax.metrics import to_host
from ppo_jax.phase_times import Profile, beside_floor, phase_seconds, profile_phases
from ppo_jax.prepare import Run
from ppo_jax.profile import peak_memory_bytes
from ppo_jax.programs import Finished, Stepper, largest_memory, make_stepper
from ppo_jax.run_folder import environment
from ppo_jax.types import PyTree, TrainState
from ppo_jax.validate import check_devices
from ppo_jax.workload import Workload, load_workload, workload_batch, workload_of

COMPILED = "/jax/core/compile/backend_compile_duration"
REPORTED = ("rollout/slot_use", "update/padding", "update/parts")


class Loop(NamedTuple):
    """What every iteration needs but its state."""

    run: Run
    workload: Workload
    stepper: Stepper
    frozen: PyTree


class Timed(NamedTuple):
    """What is left of a timed workload; no weights."""

    run: Run
    rows: list[dict[str, float]]  # metrics, wall_s and cpu_s of every timed iteration
    done: Finished  # the profiled one
    profile: Profile
    compilations: dict[str, int]
    compile_seconds: dict[str, float]
    program_bytes: dict[str, int]
    peak_bytes: int


def bench(
    asked: Sequence[tuple[Experiment, Config]], args: BenchArgs, flags: Sequence[str]
) -> None:
    """Time one workload here; several one after the other in processes of their own, with `flags`:
    peak memory is a process's, and the next one must find the device free.

    Raises PPOJaxError after the last one if one has failed.
    """
    if len(asked) == 1:
        experiment, config = asked[0]
        earlier = None if args.compare is None else bench_report.load_result(args.compare)
        result = measure(config, experiment, args.iterations, args.warmup)
        path = bench_report.save_result(Path(args.out), result)
        bench_report.show_result(result, path)
        if earlier is not None:
            bench_report.show_comparison(result, earlier)
        return
    if args.compare is not None:
        raise ConfigError("bench: --compare takes one workload; name the one of that file")
    failed = []
    for experiment, _ in asked:
        command = [sys.executable, "-m", "ppo_jax", "bench", str(experiment.path), *flags]
        if code := subprocess.run(command).returncode:
            failed.append(f"{experiment.name} (exit code {code})")
    if failed:
        raise PPOJaxError(f"bench: {', '.join(failed)} failed, see above")


def workloads_here() -> list[str]:
    """Paths of the workloads meant for this machine's device."""
    # Asked of another process: this one must not take the device from those that time it.
    code = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        raise PPOJaxError(f"bench: no device: {found.stderr.strip().splitlines()[-1:]}")
    platform = found.stdout.strip()
    paths = list_experiments(WORKLOADS).values()
    return [str(path) for path in paths if platform in workload_of(load_experiment(path)).platforms]


def measure(config: Config, experiment: Experiment, iterations: int, warmup: int) -> dict[str, Any]:
    """The result of one workload, as README.md beside the workloads describes it.

    Raises PPOJaxError if a program was compiled twice, or anything in a timed iteration.
    """
    check_devices(config, len(jax.devices()))
    # The weights are gone when it returns: room for the ceilings' large arrays.
    timed = _time(config, experiment, iterations, warmup)
    run, done = timed.run, timed.done
    assert done.rollout is not None
    prompt_B = np.asarray(done.prompts.mask_BP).sum(axis=1)
    lengths = Lengths(prompt_B, np.asarray(done.rollout.lengths_B))
    return {
        "schema": bench_report.SCHEMA,
        "kind": bench_report.TIMED,
        "workload": experiment.name,
        "title": experiment.doc.partition("\n")[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment(),
        "config_digest": config_digest(run.config),
        "overrides": diff(experiment.base, config),
        "batch": _batch(run, lengths, done),
        "compile": {"programs": timed.compilations, "seconds": timed.compile_seconds},
        "iteration": _iteration(timed.rows),
        **_phases(run, lengths, timed.profile),
        "memory": {"program": timed.program_bytes, "peak_bytes": timed.peak_bytes},
        "metrics": {name: _median(timed.rows, name) for name in REPORTED},
    }


def _time(config: Config, experiment: Experiment, iterations: int, warmup: int) -> Timed:
    with compilations() as compiled:
        run, state, frozen = load_workload(config, experiment)
        loop = Loop(run, workload_of(experiment), make_stepper(run), frozen)
        state, _ = _iterate(loop, state, 0, warmup)
        before = compiled.copy()
        state, rows = _iterate(loop, state, warmup, iterations)
        peak = peak_memory_bytes()
        counts = check_compilations(loop.stepper, before, compiled - before)
        _, done, profile = _profiled(loop, state, warmup + iterations)
    memory = largest_memory(loop.stepper.compiled)
    return Timed(run, rows, done, profile, counts, loop.stepper.compile_seconds, memory, peak)


@contextmanager
def compilations() -> Iterator[Counter]:
    """Counts what XLA compiles meanwhile, by name."""
    counts: Counter = Counter()

    def count(event: str, duration_secs: float, **facts: Any) -> None:
        if event == COMPILED:
            counts[facts.get("fun_name", "unknown")] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def check_compilations(stepper: Stepper, before: Counter, timed: Counter) -> dict[str, int]:
    """How often each program was compiled: once, and nothing at all in the timed iterations."""
    if timed:
        names = ", ".join(f"{name} x{count}" for name, count in timed.items())
        raise PPOJaxError(f"bench: compiled in the timed iterations: {names}; expected nothing")
    counts = {
        name: sum(n for fun, n in before.items() if re.fullmatch(rf"(jit[_(])?{name}\)?", fun))
        for name in stepper.compiled
    }
    if any(count != 1 for count in counts.values()):
        raise PPOJaxError(f"bench: programs compiled {counts}; expected each once")
    return counts


def config_digest(config: Config) -> str:
    """Twelve digits that change with whatever changes the arithmetic."""
    sections = {name: part for name, part in to_dict(config).items() if name != "run"}
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]


def _iterate(loop: Loop, state: TrainState, first: int, count: int):
    """`count` iterations as training runs them, the next one dispatched before the last one's
    metrics are read: (state, one dict of metrics, `wall_s` and `cpu_s` an iteration)."""
    rows: list[dict[str, float]] = []
    marks = [_clocks()]

    def read(done: Finished) -> None:
        metrics = to_host(done.metrics)
        marks.append(_clocks())
        wall, cpu = (now - then for now, then in zip(marks[-1], marks[-2], strict=True))
        rows.append({**metrics, "wall_s": wall, "cpu_s": cpu})

    pending = None
    for step in range(first, first + count):
        prompts = workload_batch(loop.run, loop.workload, step)
        state, done = loop.stepper.dispatch(state, loop.frozen, step, prompts)
        if pending is not None:
            read(pending)
        pending = done
    if pending is not None:
        read(pending)
    return state, rows


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _profiled(loop: Loop, state: TrainState, step: int) -> tuple[TrainState, Finished, Profile]:
    """One more iteration, under the profiler."""

    def work():
        prompts = workload_batch(loop.run, loop.workload, step)
        return loop.stepper.dispatch(state, loop.frozen, step, prompts)

    programs = [program.as_text() or "" for program in loop.stepper.compiled.values()]
    (state, done), profile = profile_phases(work, programs)
    return state, done, profile


def _phases(run: Run, lengths: Lengths, profile: Profile) -> dict[str, Any]:
    """`profiled`, `phases` and `ceilings` of the result."""
    config, shape, devices = run.config, run.setup.decoder.config, run.setup.mesh.size
    critic = run.setup.critic.config if config.model.critic == "separate" else None
    every = int(lengths.prompt_B.sum() + lengths.response_B.sum())
    ceilings = measure_ceilings(
        shape, every // config.ppo.minibatches // devices, config.model.compute_dtype
    )
    times = phase_seconds(profile)
    phases = beside_floor(
        times,
        phase_work(config, shape, critic, lengths),
        int(lengths.response_B.sum()),
        ceilings,
        devices=devices,
        on_cpu=jax.default_backend() == "cpu",
    )
    whole = {key: sum(phase[key] for phase in times.values()) for key in ("seconds", "cpu_s")}
    rates = {"flops": ceilings.flops, "bytes": ceilings.bytes, **ceilings.measured}
    return {
        "profiled": {"wall_s": whole["seconds"], "cpu_s": whole["cpu_s"]},
        "phases": phases,
        "ceilings": {name: rate._asdict() for name, rate in rates.items()},
    }


def _batch(run: Run, lengths: Lengths, done: Finished) -> dict[str, Any]:
    """What the profiled iteration worked on."""
    response_B = lengths.response_B
    assert done.rollout is not None
    return {
        "sequences": len(response_B),
        "prompt_width": run.width,
        "prompt_tokens": int(lengths.prompt_B.sum()),
        "response_tokens": int(response_B.sum()),
        "response_mean": float(response_B.mean()),
        "response_max": int(response_B.max()),
        "ended": float(np.asarray(done.rollout.ended_B).mean()),
    }


def _iteration(rows: list[dict[str, float]]) -> dict[str, Any]:
    """The timed iterations: median, least and most seconds, response tokens a second."""
    spread = lambda values: {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }
    result: dict[str, Any] = {
        key: spread([row[key] for row in rows]) for key in ("wall_s", "cpu_s")
    }
    tokens = [row["rollout/tokens"] for row in rows]
    for name, key in (("tokens_per_s", "wall_s"), ("tokens_per_cpu_s", "cpu_s")):
        rates = [count / row[key] for count, row in zip(tokens, rows, strict=True) if row[key] > 0]
        result[name] = statistics.median(rates) if rates else None
    return result


def _median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)
