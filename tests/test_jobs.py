"""Commands side by side: how many at a time, what comes after what, which code is the whole's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Stands for `ppo-jax`: notes when it begins and ends, and does what its second word says.
STAGE = """#!{python}
import signal, sys, time
from pathlib import Path
name, does = sys.argv[3], sys.argv[4]
note = lambda what: open({log!r}, "a").write(f"{{what}} {{name}} {{time.monotonic()}}\\n")
def end(number, frame):
    note(signal.Signals(number).name)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, end)
note("begin")
print("said by", name, flush=True)
if does.startswith("wait"):
    time.sleep(float(does[4:]))
if does == "locked":  # until somebody else has done it
    sys.exit(5)
if does == "killed":
    signal.raise_signal(signal.SIGKILL)
note("end")
sys.exit(int(does[4:]) if does.startswith("exit") else 0)
"""
SCRIPT = """
import json, sys
from pathlib import Path
from ppo_jax import jobs
sys.executable, jobs.LOCKED_SECONDS = sys.argv[1], 0.3
asked = [
    jobs.Job(name, (name, does), tuple(after), Path(done).exists if done else None)
    for name, does, after, done in json.loads(sys.argv[2])
]
ended = jobs.run_jobs(asked, int(sys.argv[3]))
print(json.dumps([ended.codes, ended.stopped, ended.code]), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts jobs, given as (name, what it does, after which, file that says that it is done)."""

    def start(*jobs, at_once=1, env=None):
        stage = tmp_path / "stage"
        stage.write_text(STAGE.format(python=sys.executable, log=str(tmp_path / "log")))
        stage.chmod(0o755)
        full = [[*job, *([], None)[len(job) - 2 :]] for job in jobs]
        command = [sys.executable, "-c", SCRIPT, str(stage), json.dumps(full), str(at_once)]
        path = {"PYTHONPATH": str(Path(__file__).parents[1])}
        environment = {**os.environ, **path, **(env or {})}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.fixture
def log(tmp_path):
    """(what, name) of all that has been noted, and the times by the same."""

    def log():
        path = tmp_path / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return {(what, name): float(at) for what, name, at in lines}

    return log


def result(process):
    out, _ = process.communicate(timeout=120)
    *said, last = out.splitlines()
    return json.loads(last), said


def test_one_after_another_in_their_order(start, log):
    (codes, stopped, code), said = result(start(("a", "wait0.2"), ("b", "wait0"), ("c", "wait0")))
    assert codes == {"a": 0, "b": 0, "c": 0} and not stopped and code == 0
    assert said == [
        line
        for n in "abc"
        for line in (f"{n}: ppo-jax {n} wait0{'.2' * (n == 'a')}", f"said by {n}")
    ]
    at = log()
    assert at["end", "a"] < at["begin", "b"] and at["end", "b"] < at["begin", "c"]


def test_two_at_a_time_and_no_more(start, log):
    jobs = [(name, "wait0.6") for name in "abcd"]
    (codes, _, _), said = result(start(*jobs, at_once=2))
    assert set(codes.values()) == {0} and len(codes) == 4
    assert {f"{name} | said by {name}" for name in "abcd"} <= set(said)
    at = log()
    running = lambda t: sum(at["begin", n] <= t < at["end", n] for n in "abcd")
    assert max(running(t) for t in at.values()) == 2
    assert max(at["begin", "a"], at["begin", "b"]) < min(at["end", "a"], at["end", "b"])


def test_those_after_one_that_fails_are_left_out_and_others_run(start, log):
    jobs = [
        ("sft", "exit3"),
        ("model", "wait0", ["sft"]),
        ("cell", "wait0", ["model"]),
        ("other", "exit7"),
        ("killed", "killed"),
        ("last", "wait0", []),
    ]
    (codes, stopped, code), _ = result(start(*jobs, at_once=2))
    assert codes == {"sft": 3, "other": 7, "killed": 137, "last": 0} and not stopped
    assert code == next(iter(codes.values())) and code in (3, 7)
    assert not {name for _, name in log()} & {"model", "cell"}


def test_what_comes_first_is_done_first(start, log):
    jobs = [("cell", "wait0", ["sft"]), ("sft", "wait0.3")]
    (codes, _, code), _ = result(start(*jobs, at_once=2))
    assert list(codes) == ["sft", "cell"] and code == 0
    assert log()["end", "sft"] < log()["begin", "cell"]


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_that_run_and_nothing_begins(start, log, number, at_once):
    process = start(("a", "wait60"), ("b", "wait60"), ("c", "wait0"), at_once=at_once)
    running = "ab"[:at_once]
    deadline = time.monotonic() + 60
    while not log().keys() >= {("begin", name) for name in running}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    (codes, stopped, code), _ = result(process)
    assert codes == dict.fromkeys(running, 75) and stopped and code == 75
    assert log().keys() == {(k, n) for n in running for k in ("begin", number.name)}


def test_what_another_process_has_in_hand_is_waited_for(start, log, tmp_path):
    """It is locked; once the other has done it, it is not run again, and what comes after it is."""
    done = tmp_path / "done"
    process = start(("sft", "locked", [], str(done)), ("cell", "wait0", ["sft"]))
    deadline = time.monotonic() + 60
    while ("begin", "sft") not in log():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ("begin", "cell") not in log()
    done.touch()
    (codes, _, code), _ = result(process)
    assert codes == {"sft": 0, "cell": 0} and code == 0


def test_a_lock_is_a_failure_where_nobody_else_would_do_it(start):
    (codes, _, code), _ = result(start(("cell", "locked"), ("other", "wait0")))
    assert codes == {"cell": 5, "other": 0} and code == 5
