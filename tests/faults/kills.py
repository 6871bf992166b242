"""Runs killed without warning (F1, F2, F3, F13, F37), and ended by signals (F4, F5, F6)."""

import random
import signal
import socket
import time
from pathlib import Path

from faults.launch import (
    Ended,
    assert_same,
    exact,
    experiment,
    finish,
    launch,
    of,
    start,
)
from faults.table import fault
from ppo_jax import manifest
from ppo_jax.metrics import read_metrics

ITERATIONS, EVERY = 120, 5
LENGTH = {"run__iterations": ITERATIONS, "run__checkpoint_every": EVERY}
SHOWN = {"run__show_prompts": 2, "run__profile_after": 2, "run__keep_best": "objective/scores"}
VARIANTS = {  # name -> (changes of the config, reward, devices)
    "device reward": ({}, "REWARD = ascii_share", 1),
    "host reward": ({}, "REWARD = half_and_half()", 1),
    "LoRA": ({"model__lora__rank": 2}, "REWARD = ascii_share", 1),
    "separate critic": ({"model__critic": "separate"}, "REWARD = ascii_share", 1),
    "1 device": (SHOWN | {"rollout__slots": 4}, "REWARD = ascii_share", 1),
    "4 devices": ({}, "REWARD = ascii_share", 4),
}
KILLS = 17  # a variant, at random times
SEED = 20_26  # of the times


@fault(
    "F1",
    "uninterrupted twice",
    injected="nothing",
    expected="all metrics, samples and the final state equal to the last bit",
)
def twice(folder: Path) -> str:
    path = experiment(folder, run__iterations=20, run__checkpoint_every=4)
    left, right = finish(path, folder / "a"), finish(path, folder / "b")
    assert_same(left, right)
    return f"{len(exact(left))} iterations equal"


def killed_at_random(variant: str, folder: Path, kills: int, seed: int) -> str:
    """Kill a variant's run again and again; whenever it ends by itself it must be the one that was
    left alone, and a new one begins."""
    changes, reward, devices = VARIANTS[variant]
    path = experiment(folder, reward=reward, **LENGTH, **changes)
    began = time.monotonic()
    whole = finish(path, folder / "whole", devices=devices)
    took = time.monotonic() - began
    draw, done, ended, times = random.Random(f"{seed} {variant}"), 0, 0, []
    while done < kills or ended == 0:
        runs, seconds = folder / f"killed{ended}", draw.uniform(0.05, took)
        if done >= kills:  # the last one may end
            seconds = 10 * took
        code = start(path, runs, devices=devices).signal_after(seconds).code
        assert code in (0, -signal.SIGKILL), f"exit code {code}, in {runs}"
        if code == 0:
            assert_same(of(path, runs), whole)
            ended += 1
        else:
            done += 1
            times.append(round(seconds, 2))
    print(f"    {variant}: seed {seed}, killed after {times} s")
    return f"{done} kills (seed {seed}), {ended} runs ended, 0 differing bits"


def add_kills() -> None:
    for letter, variant in zip("abcdef", VARIANTS, strict=True):
        fault(
            f"F2{letter}",
            f"kill -9 at random: {variant}",
            injected=f"{KILLS} SIGKILLs at times drawn from (0.05 s, the run's length)",
            expected="started again without flags: metrics, samples, state of the run left alone",
        )(lambda folder, variant=variant: killed_at_random(variant, folder, KILLS, SEED))


add_kills()


@fault(
    "F2",
    "kill -9 at random, a few",
    injected="2 SIGKILLs at random times",
    expected="started again without flags: metrics, samples, state of the run left alone",
    fast=True,
)
def killed_a_few_times(folder: Path) -> str:
    return killed_at_random("device reward", folder, 2, SEED + 1)


@fault(
    "F3",
    "kill -9 within a save",
    injected="killed as a save begins, writes, before its record, as an old one is removed",
    expected="the step before it is used, and the end is that of the run left alone",
)
def killed_in_a_save(folder: Path) -> str:
    path = experiment(folder, run__iterations=20, run__checkpoint_every=4)
    whole, seen = finish(path, folder / "whole"), []
    for point in ("save_begin", "save_mid", "save_commit", "gc", "metrics", "step", "compile"):
        number = {"gc": 1, "metrics": 25, "step": 7, "compile": 1}.get(point, 3)
        runs = folder / point
        ended = launch(path, runs, PPO_JAX_FAULT=f"kill@{point}:{number}")
        assert ended.code == -signal.SIGKILL, f"{point}: exit code {ended.code}"
        have = manifest.latest_step(of(path, runs).checkpoints)
        again = launch(path, runs)
        assert again.code == 0, again.err
        resumed = f"resumed at iteration {have}"
        assert have is None or resumed in again.out, f"{point}: not {resumed}"
        assert_same(of(path, runs), whole)
        seen.append(f"{point} {have}")
    return "went on from: " + ", ".join(seen)


@fault(
    "F13",
    "the process ends right after a save",
    injected="the last iteration's save is the last thing that happens",
    expected="the checkpoint is on the disk when the process ends with code 0",
)
def ends_after_a_save(folder: Path) -> str:
    path = experiment(folder, run__iterations=2, run__checkpoint_every=100)
    run = finish(path, folder / "runs")
    step = manifest.latest_step(run.checkpoints)
    assert step == 2, f"latest step {step}"
    manifest.verify(run.checkpoints, 2)
    return "step 2 there and whole"


def stopped(ended: Ended) -> str:
    """The one line that a run says which was told to end."""
    assert ended.code == 75, f"exit code {ended.code}: {ended.err[-1000:]}"
    assert "preempted" in ended.last and "Traceback" not in ended.err, ended.err
    return ended.last


@fault(
    "F4",
    "SIGTERM, SIGINT in any phase",
    injected="SIGTERM and SIGINT while it compiles, steps, scores on the host, saves",
    expected="one line, code 75, what is saved is named; going on gives the run left alone",
)
def signals(folder: Path) -> str:
    path = experiment(
        folder, reward="REWARD = half_and_half()", run__iterations=40, run__checkpoint_every=8
    )
    whole, seen = finish(path, folder / "whole"), []
    for name in ("term", "int"):
        for point, number in (("compile", 1), ("step", 21), ("reward", 13), ("save_mid", 2)):
            runs = folder / f"{name}-{point}"
            ended = launch(path, runs, PPO_JAX_FAULT=f"{name}@{point}:{number}")
            said = stopped(ended)
            assert ended.err.count("preempted") == 1, ended.err
            have = manifest.latest_step(of(path, runs).checkpoints)
            assert (have is None) == (point == "compile"), f"{point}: saved {have}"
            assert have is None or f"step {have}" in said, said
            assert_same(finish(path, runs), whole)
            seen.append(f"{name} in {point}: {'nothing' if have is None else have} saved")
    return "; ".join(seen)


@fault(
    "F4b",
    "a signal within jax.distributed",
    injected="jax.distributed.initialize with one process, then SIGTERM in an iteration",
    expected="the same: saved at the iteration's end, one line, code 75",
)
def distributed(folder: Path) -> str:
    path = experiment(folder, run__iterations=40, run__checkpoint_every=100)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    first = f"import jax; jax.distributed.initialize({address!r}, num_processes=1, process_id=0)"
    said = stopped(launch(path, folder / "runs", first=first, PPO_JAX_FAULT="term@step:9"))
    have = manifest.latest_step(of(path, folder / "runs").checkpoints)
    assert have is not None and have >= 9, f"saved {have}"
    assert_same(finish(path, folder / "runs"), finish(path, folder / "whole"))
    return said


@fault(
    "F4c",
    "a step longer than the grace period; a second signal",
    injected="a host reward that sleeps, with run.grace=1: one SIGTERM; two within 60 s of grace",
    expected="the process ends within the grace period, at the second signal at once, with code 75",
)
def impatient(folder: Path) -> str:
    slow = """
import time
calls = []
def slow(prompts, responses):
    calls.append(1)
    time.sleep(9 if len(calls) > 8 else 0.01)
    return [0.0] * len(prompts)
REWARD = slow
"""
    seen = []
    for name, grace, signals_ in (("one", "1", 1), ("two", "60", 2)):
        path = experiment(folder, reward=slow, name=name, run__iterations=40)
        job = start(path, folder / "runs", "--run.grace", grace, "--run.checkpoint_every", "3")
        job.wait_for("7/40")
        time.sleep(1.0)
        began = time.monotonic()
        for _ in range(signals_):
            job.process.send_signal(signal.SIGTERM)
            time.sleep(1.3)
        ended = job.wait()
        took = time.monotonic() - began
        assert took < 6, f"{name}: took {took:.1f} s"
        seen.append(f"{took:.1f} s: {stopped(ended)}")
    return "; ".join(seen)


@fault(
    "F5",
    "SIGTERM before the first save",
    injected="SIGTERM at the start, and in the first iterations",
    expected="code 75; it says that nothing is saved, or saves the iteration reached",
)
def before_the_first_save(folder: Path) -> str:
    path = experiment(folder, run__iterations=30, run__checkpoint_every=100)
    whole = finish(path, folder / "whole")
    early = stopped(launch(path, folder / "a", PPO_JAX_FAULT="term@compile"))
    assert "nothing was saved" in early, early
    late = stopped(launch(path, folder / "b", PPO_JAX_FAULT="term@step:9"))
    assert "saved step" in late, late
    for runs in ("a", "b"):
        assert_same(finish(path, folder / runs), whole)
    return f"{early} / {late}"


@fault(
    "F6",
    "going on from an epoch's end, the last iteration, a finished run",
    injected="16 prompts, 8 a batch: stopped after 2, 3 and all iterations",
    expected="the run left alone; a finished run says so, code 0, files untouched",
)
def at_the_borders(folder: Path) -> str:
    path = experiment(folder, run__iterations=6, run__checkpoint_every=1)
    whole = finish(path, folder / "whole")
    for count in ("2", "5"):
        finish(path, folder / count, "--run.iterations", count)
        assert_same(finish(path, folder / count), whole)
    before = {p: p.read_bytes() for p in whole.root.rglob("*") if p.is_file() and p.name != "lock"}
    ended = launch(path, folder / "whole")
    assert ended.code == 0 and "already complete at iteration 6" in ended.out, ended.out
    after = {p: p.read_bytes() for p in whole.root.rglob("*") if p.is_file() and p.name != "lock"}
    assert before == after, "files of the finished run have changed"
    return ended.out.strip().splitlines()[-1].split(": ")[-1]


@fault(
    "F37",
    "a crash while a line of metrics is written",
    injected="killed before a line; half a line put at the end of metrics.jsonl and samples.jsonl",
    expected="the torn lines go, each iteration is there once, in order",
)
def torn_lines(folder: Path) -> str:
    path = experiment(folder, run__iterations=12, run__checkpoint_every=5)
    whole = finish(path, folder / "whole")
    ended = launch(path, folder / "runs", PPO_JAX_FAULT="kill@metrics:17")
    assert ended.code == -signal.SIGKILL, ended.code
    run = of(path, folder / "runs")
    for log in (run.metrics, run.samples):
        with log.open("a") as file:
            file.write('{"step": 8, "objective/sc')
    assert_same(finish(path, folder / "runs"), whole)
    return f"{len(read_metrics(run.metrics))} lines, each once"
