"""Signals: what is decided when one comes, and that a run in a process of its own obeys it."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from faults.launch import experiment, launch, of
from ppo_jax import manifest
from ppo_jax.errors import Preempted
from ppo_jax.preemption import Preemption, watch

ENDED = """
import os, signal, sys, threading, time
from ppo_jax.preemption import Preemption, watch
preemption = Preemption()
preemption.grace = {grace}
preemption.durable = lambda: {durable}
preemption.settle = lambda seconds: {settle}
preemption.tell = lambda code, line: {tell}
with watch(preemption):
    preemption.begin("iteration 3", {expected})
    {act}
    if preemption.asked.wait(10):
        {then}
print("end reached")
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM)"
WAIT = "time.sleep(20)"
AGAIN = "time.sleep(1.2); os.kill(os.getpid(), signal.SIGINT)"
TWICE = f"{KILL}; preemption.asked.wait(5); {AGAIN}"


def ended(act=KILL, then="pass", stderr=subprocess.PIPE, **fields):
    """(exit code, stderr, seconds, whether it came to its end) of a process that does this."""
    usual = {"grace": 5.0, "expected": 0.5, "durable": None, "settle": "None", "tell": "None"}
    code = ENDED.format(**{**usual, **fields}, act=act, then=then)
    began = time.monotonic()
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    done = subprocess.run(command, stdout=pipe, stderr=stderr, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - began, "end reached" in done.stdout


def test_what_fits_the_grace_period_is_waited_for():
    code, err, _, whole = ended(then="time.sleep(0.3)")
    assert (code, err, whole) == (0, "", True)


def test_what_does_not_fit_ends_at_once():
    code, err, seconds, whole = ended(expected=60.0, durable=12, then=WAIT)
    assert code == 75 and not whole and seconds < 5
    assert err == (
        "ppo-jax: preempted (SIGTERM during iteration 3); step 12 is saved; the same command goes "
        "on from there\n"
    )


def test_nothing_saved_is_said():
    code, err, _, _ = ended(expected="float('inf')", then=WAIT)
    assert code == 75 and "nothing was saved yet" in err


def test_a_save_under_way_is_given_its_time():
    code, err, seconds, _ = ended(expected=60.0, durable=3, settle="time.sleep(1.0)", then=WAIT)
    assert code == 75 and seconds >= 1.0 and "step 3 is saved" in err


def test_what_took_longer_than_expected_ends_with_the_grace_period():
    code, err, seconds, whole = ended(grace=1.0, expected=0.5, then=WAIT)
    assert code == 75 and not whole and seconds < 8
    assert "iteration 3 took longer than run.grace=1 s" in err


def test_a_second_signal_ends_at_once():
    code, err, seconds, whole = ended(grace=30.0, act=TWICE, then=WAIT)
    assert code == 75 and not whole and seconds < 10 and "second signal" in err


def test_what_make_hands_on_is_the_same_signal():
    twice = f"{KILL}; preemption.asked.wait(5); time.sleep(0.1); {KILL}"
    code, err, _, whole = ended(act=twice, then="time.sleep(0.5)")
    assert (code, err, whole) == (0, "", True)


def test_a_main_thread_that_does_not_return_to_python_is_no_obstacle():
    """As within a compiled program: without the GIL, and deaf to Python's signal handlers."""
    deaf = "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 10**9)"
    busy = f"threading.Timer(0.5, lambda: {KILL}).start(); {deaf}"
    code, err, seconds, whole = ended(expected=60.0, act=busy)
    assert code == 75 and not whole and seconds < 20 and "SIGTERM during" in err


@contextlib.contextmanager
def full_device():
    with open("/dev/full", "wb") as file:
        yield file


@contextlib.contextmanager
def full_pipe():
    """That nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


# Begun at once, at the end of the grace period, and by a second signal.
WAYS = [{"expected": 60.0, "grace": 2.0}, {"grace": 1.0}, {"grace": 30.0, "act": TWICE}]


@pytest.mark.parametrize("stderr", [full_device, full_pipe])
@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_can_be_said_the_code_says_it(stderr, way):
    with stderr() as file:
        code, _, seconds, whole = ended(**way, then=WAIT, stderr=file)
    assert code == 75 and not whole and seconds < 10


BROKEN = {
    "durable": ("1/0", "what is saved cannot be read (division by zero); the same"),
    "settle": ("1/0", "nothing was saved yet; the same"),
    "tell": ("1/0", "nothing was saved yet; the same"),
}
LASTING = {
    "durable": (WAIT, "what is saved cannot be read (no answer in 3 s); the same"),
    "settle": (WAIT, "nothing was saved yet; the same"),
    "tell": (WAIT, "nothing was saved yet; the same"),
}
CASES = [(name, *case) for cases in (BROKEN, LASTING) for name, case in cases.items()]


@pytest.mark.parametrize("name, does, said", CASES)
def test_what_fails_or_lasts_on_the_way_keeps_nobody(name, does, said):
    code, err, seconds, whole = ended(expected=60.0, grace=2.0, then=WAIT, **{name: does})
    assert code == 75 and not whole and seconds < 12
    assert said in err and len(err.splitlines()) == 1, err


def test_a_second_signal_ends_what_fails():
    code, err, seconds, _ = ended(grace=30.0, act=TWICE, then=WAIT, durable="1/0", tell="1/0")
    assert code == 75 and seconds < 10 and "second signal" in err


NO_THREADS = "threading.Thread.start = lambda self: (_ for _ in ()).throw(RuntimeError('none'))"


@pytest.mark.parametrize("gone", ["sys.__stderr__.close()", NO_THREADS])
def test_a_process_that_has_nothing_left_to_say_it_with(gone):
    """A stream that is closed; threads that cannot be had."""
    code, _, seconds, whole = ended(expected=60.0, act=f"{gone}; {KILL}", then=WAIT)
    assert code == 75 and not whole and seconds < 10


def test_what_failed_controls_no_terminal():
    _, err, _, _ = ended(expected=60.0, then=WAIT, durable="open('/no\\x1b[2J')")
    assert "/no\\x1b[2J" in err and "\x1b" not in err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with watch(Preemption()) as _:
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_saved_is_not_known_at_first():
    preemption = Preemption()
    assert preemption.have() == "what was saved before stays"
    for step, said in ((None, "nothing was saved yet"), (7, "step 7 is saved")):
        preemption.durable = lambda step=step: step
        assert preemption.have() == said


def test_the_error_names_what_was_saved():
    preemption = Preemption()
    preemption.durable = lambda: 7
    error = preemption.saved(7)
    assert isinstance(error, Preempted) and error.exit_code == 75
    assert str(error) == "preempted at iteration 7, saved step 7"


EARLY = """
import os, signal, sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "ppo_jax.train":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
sys.meta_path.insert(0, Slow())
"""


def test_a_signal_before_a_run_knows_what_it_has(tmp_path):
    done = launch(experiment(tmp_path), tmp_path / "runs", first=EARLY)
    assert (done.code, done.err) == (
        75,
        "ppo-jax: preempted (SIGTERM during start); what was saved before stays; the same command "
        "goes on from there\n",
    )


@pytest.mark.parametrize("action", ["term", "int"])
def test_a_run_saves_and_says_so(tmp_path, action):
    path = experiment(tmp_path, run__iterations=30, run__checkpoint_every=100)
    done = launch(path, tmp_path / "runs", PPO_JAX_FAULT=f"{action}@step:9")
    step = manifest.latest_step(of(path, tmp_path / "runs").checkpoints)
    assert step is not None and step >= 9
    assert done.code == 75 and done.err == (
        f"ppo-jax: preempted at iteration {step}, saved step {step}\n"
    ), done.err
    assert '"status": "preempted"' in of(path, tmp_path / "runs").status.read_text()
