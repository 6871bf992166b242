"""Ours against the peers on one workload: alternating iterations within one session.

    python experiments/bench/peers/run.py --workload W1 --rounds 5

Every side is a process that works only when told to. On the CPU all stay alive, and after the
warm-up a round is one iteration of each in turn, so whatever slows the machine falls on all of
them. A CUDA device has one owner at a time: there a side does all its rounds and ends before the
next one starts. The result is a table on the screen and a JSON file with every raw figure.
`README.md` beside this file has the settings of the peers, and how to make their environments.
"""

import argparse
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from device import BenchError, require_cuda, require_environments
from figures import OURS, disagreements, evaluate, other_steps, table
from shapes import SHAPES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
NOT_OFFERED = {"tunix": ("W4", "G1", "TG")}
CPU_ONLY = ("tunix",)


class Worker(NamedTuple):
    name: str
    process: subprocess.Popen
    log: Path  # its stderr
    timeout_s: float  # for one answer


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Ours against the peers on one workload",
        epilog="--section.key VALUE sets a field of our workload's configuration",
    )
    parser.add_argument("--workload", type=str.upper, choices=SHAPES, default="W1")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda for G1, else cpu")
    parser.add_argument("--ours", help="another of our workload files, such as w1s")
    parser.add_argument("--peers", nargs="+", choices=("trl", "tunix"), default=["trl", "tunix"])
    parser.add_argument("--rounds", type=int, default=5, help="timed iterations of each side")
    parser.add_argument("--warmup", type=int, default=2, help="untimed ones before them")
    parser.add_argument("--no-memory", action="store_true", help="do not count tensor bytes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one answer")
    for peer in ("trl", "tunix"):
        parser.add_argument(f"--{peer}-python", default=f".venv-{peer}/bin/python")
    arguments, flags = parser.parse_known_args(argv)
    if unknown := [word for word in flags if word.startswith("--") and "." not in word]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if flags and not flags[0].startswith("--"):
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    arguments.flags = flags
    arguments.device = arguments.device or SHAPES[arguments.workload].device
    if arguments.ours is None and not (HERE.parent / f"{arguments.workload.lower()}.py").is_file():
        parser.error(f"--workload {arguments.workload}: only with --ours FILE, a workload like it")
    if arguments.rounds < 1 or arguments.warmup < 0:
        parser.error("--rounds must be at least 1 and --warmup at least 0")
    return arguments


def commands(arguments: argparse.Namespace, prompts: Path) -> dict[str, list[str]]:
    """The command line of each side, ours first: it writes the prompts that the others read."""
    mine, device = arguments.ours or arguments.workload, arguments.device
    served = ("--device", device, "--serve")
    made = {
        OURS: [
            *(sys.executable, str(HERE / "ours.py"), "--workload", mine),
            *(*served, "--write-prompts", str(prompts), *arguments.flags),
        ]
    }
    for peer in arguments.peers:
        absent = device != "cpu" and peer in CPU_ONLY
        if absent or arguments.workload in NOT_OFFERED.get(peer, ()):
            print(f"{peer}: n/a for {arguments.workload} on {device}", file=sys.stderr)
            continue
        python = ROOT / Path(getattr(arguments, f"{peer}_python")).expanduser()
        if not python.exists():
            raise BenchError(f"{peer}: no {python}; make its environment, or give --{peer}-python")
        made[peer] = [
            *(str(python), str(HERE / f"{peer}_ppo.py"), "--workload", arguments.workload),
            *(*served, "--prompts", str(prompts)),
        ]
    return made


@contextmanager
def open_worker(name: str, command: Sequence[str], log: Path, timeout_s: float) -> Iterator[Worker]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        )
    try:
        yield Worker(name, process, log, timeout_s)
        process.stdin.close()  # which tells it to end
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        pass  # its work is done: how it ends is nobody's concern
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(worker: Worker, command: str | None) -> dict[str, Any]:
    """The worker's answer to a command; None waits for its first line."""
    doing = "starting" if command is None else command
    try:
        if command is not None:
            worker.process.stdin.write(f"{command}\n".encode())
        ready, _, _ = select.select([worker.process.stdout], [], [], worker.timeout_s)
        if not ready:
            raise BenchError(f"{worker.name}: no answer in {worker.timeout_s:.0f} s ({doing})")
        line = worker.process.stdout.readline()
    except BrokenPipeError:
        line = b""
    if not line.endswith(b"\n"):
        raise BenchError(f"{worker.name}: ended ({doing}): {_last_words(worker)}")
    try:
        return json.loads(line)
    except ValueError:
        text = line.decode(errors="replace").strip()[:200]
        raise BenchError(f"{worker.name}: answered no JSON ({doing}): {text}") from None


def _last_words(worker: Worker) -> str:
    """Exit code and the last line of stderr, where an exception's name stands."""
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        code = "unknown"
    lines = worker.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"exit code {code}: {said[-1][:300] if said else 'nothing on stderr'}"


def measure(
    sides: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    warmup: int,
    memory: bool,
    timeout_s: float,
    alone: bool = False,
) -> dict[str, Any]:
    """Facts, rows and memory of every side; `alone`: one side after the other instead of in turn.

    Raises BenchError as soon as a side ends, or turns out to do other work than ours.
    """
    found: dict[str, Any] = {key: {} for key in ("facts", "rows", "warmup_rows", "memory")}
    for group in [[name] for name in sides] if alone else [list(sides)]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers_")))
            workers = {}
            for name in group:
                opened = open_worker(name, sides[name], folder / f"{name}.log", timeout_s)
                workers[name] = stack.enter_context(opened)
                found["facts"][name] = ask(workers[name], None)
                if name != OURS:
                    _refuse(disagreements(found["facts"][OURS], found["facts"][name]))
            _time(workers, found, rounds=rounds, warmup=warmup)
            if memory:
                found["memory"] |= {name: ask(it, "memory") for name, it in workers.items()}
    return found


def _time(workers: Mapping[str, Worker], found: dict[str, Any], *, rounds: int, warmup: int):
    """Add the rows of these workers, one iteration of each in turn."""
    warm, rows = found["warmup_rows"], found["rows"]
    warm |= {name: [_iterate(worker) for _ in range(warmup)] for name, worker in workers.items()}
    if warmup:
        _refuse(other_steps(warm))
    rows |= {name: [] for name in workers}
    for number in range(rounds):
        for name, worker in workers.items():
            rows[name].append(_iterate(worker, f"round {number + 1}/{rounds}"))
    _refuse(other_steps(rows))


def _iterate(worker: Worker, label: str = "warm-up") -> dict[str, Any]:
    row = ask(worker, "iterate")
    said = f"{row['cpu_s']:.2f} CPU s, {row['wall_s']:.2f} s, {row['tokens']} tokens"
    print(f"{label}, {worker.name}: {said}", file=sys.stderr, flush=True)
    return row


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise BenchError(f"not the same work: {'; '.join(found)}")


def machine() -> dict[str, Any]:
    """Device, system and commit."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return {
        "device": named[0] if named else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "system": platform.platform(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def result_path(arguments: argparse.Namespace, began: str) -> Path:
    """peers-<workload>-<time>.json among the results."""
    if arguments.out is not None:
        return arguments.out
    against = f"-{Path(arguments.ours).stem.lower()}" if arguments.ours else ""
    name = f"peers-{arguments.workload.lower()}{against}-{began.replace(':', '-')}.json"
    return HERE.parent / "results" / name


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured.

    Raises BenchError where the comparison cannot be made.
    """
    alone = arguments.device == "cuda"
    if alone:
        require_cuda(arguments.workload)
    with tempfile.TemporaryDirectory(prefix="peers_") as folder:
        sides = commands(arguments, Path(folder) / "prompts.jsonl")
        if alone:
            require_environments({name: command[0] for name, command in sides.items()})
        return measure(
            sides,
            rounds=arguments.rounds,
            warmup=arguments.warmup,
            memory=not arguments.no_memory,
            timeout_s=arguments.timeout,
            alone=alone,
        )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        measured = compare(arguments)
    except BenchError as error:
        print(f"bench-peers: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bench-peers: interrupted", file=sys.stderr)
        return 130
    asked = {"workload": arguments.workload, "ours": arguments.ours or arguments.workload}
    asked |= {"flags": arguments.flags, "device": arguments.device}
    result = {**asked, "time": began, "machine": machine(), **measured}
    figures = evaluate(measured["facts"], measured["rows"], measured["memory"])
    result["figures"] = figures
    path = result_path(arguments, began)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    on_cpu = arguments.device == "cpu"
    device = result["machine"]["device"] if on_cpu else measured["facts"][OURS]["device"]
    print(
        f"{asked['ours']} against the peers' {asked['workload']}, {device}, "
        f"{figures['rounds']} rounds ({figures['undisturbed_rounds']} undisturbed)"
    )
    print(table(result))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
