"""Processes that find each other, and strangers who come instead of them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from faults.launch import TESTS
from ppo_jax import joining
from process_runs import free_port
from test_links import each

HERE = socket.gethostname()


def ipv6_is_here():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def close(*joined):
    for sockets, _ in joined:
        for connection in sockets.values():
            connection.close()


def knock(address):
    """A connection to one who is about to listen."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(address, timeout=20)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_process_that_does_not_come_is_named_to_all():
    address = ("127.0.0.1", free_port())
    errors = each(
        lambda: joining.accept(address, 4, 0.5), lambda: joining.connect(address, 2, 4, 10)
    )
    assert [str(error) for error in errors] == ["process 1, 3 of 4 did not come"] * 2


def test_a_first_process_that_does_not_come():
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        joining.connect(("127.0.0.1", free_port()), 1, 2, 0.5)
    assert time.monotonic() - began < 5


def test_one_of_another_number_is_refused():
    address = ("127.0.0.1", free_port())
    errors = each(lambda: joining.accept(address, 2, 5), lambda: joining.connect(address, 1, 3, 5))
    for error in errors:
        assert f"process 1 of 3 on {HERE} is not one that lacks, of 2" in str(error), errors


def test_a_process_that_is_there_twice_is_refused():
    address = ("127.0.0.1", free_port())
    second = lambda: joining.connect(address, 1, 3, 5)
    errors = each(lambda: joining.accept(address, 3, 5), second, second)
    for error in errors:
        assert f"process 1 of 3 on {HERE} is not one that lacks, of 3" in str(error), errors


def hello(**changes):
    said = {**joining.WHO, "process": 1, "processes": 2, "host": "h"} | changes
    return json.dumps({key: value for key, value in said.items() if value is not None}).encode()


STRANGE = {
    "another protocol": b"GET / HTTP/1.1",
    "another version": hello(version=0),
    "too deep": b"[" * 4000,
    "too long": b" " * 100_000,
    "a number too long": b"1" * 4990,
    "no process": hello(process=None),
    "no count": hello(processes=None),
    "no host": hello(host=None),
    "a word": hello(process="x"),
    "a truth": hello(process=True),
    "a fraction": hello(processes=2.0),
    "a host that is none": hello(host={}),
    "the first": hello(process=0),
    "below the first": hello(process=-1),
    "beyond the last": hello(process=2),
    "nothing": None,
}


@pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE)
def test_a_stranger_is_let_go(said):
    address = ("127.0.0.1", free_port())
    gone = threading.Event()

    def strange():
        with knock(address) as stranger, contextlib.suppress(ConnectionError):
            if said is not None:
                stranger.sendall(said + b"\n")
                assert stranger.recv(1) == b""
        gone.set()

    def join():
        gone.wait(10)
        return joining.connect(address, 1, 2, 5)

    theirs, _, ours = each(lambda: joining.accept(address, 2, 10), strange, join)
    assert set(theirs[0]) == {1}
    assert theirs[1] == ours[1] == dict.fromkeys((0, 1), HERE)
    close(theirs, ours)


def test_strangers_keep_nobody_waiting(monkeypatch):
    """One who says nothing, one who is slow: each has its time, all of it at once."""
    monkeypatch.setattr(joining, "HELLO_SECONDS", 1.5)
    address = ("127.0.0.1", free_port())
    lasted = []

    def drip():
        with knock(address) as stranger, contextlib.suppress(ConnectionError):
            began = time.monotonic()
            for letter in hello()[:30]:  # a second before each time-out of its own
                stranger.sendall(bytes([letter]))
                time.sleep(0.3)
                stranger.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if stranger.recv(1) == b"":
                        break
                stranger.settimeout(5)
        lasted.append(time.monotonic() - began)

    def join():
        with knock(address), knock(address):
            began = time.monotonic()
            first = joining.connect(address, 1, 3, 20)
            return first, time.monotonic() - began

    def last():
        while not lasted:
            time.sleep(0.05)
        return joining.connect(address, 2, 3, 20)

    theirs, _, ours, two = each(lambda: joining.accept(address, 3, 20), drip, join, last)
    assert set(theirs[0]) == {1, 2} and 1 < lasted[0] < 4
    close(theirs, ours[0], two)


def test_a_stranger_who_listens():
    """What is no reply of a first process is said to be none."""
    for reply in (
        b"HTTP/1.1 400\n",
        b"[" * 100_000 + b"\n",
        b'{"0": 1}\n',
        b'{"0": "h"}\n',
        b"5\n",
    ):
        with joining.listener(0) as door:

            def answer(door=door, reply=reply):
                connection, _ = door.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(reply)
                    connection.recv(1)

            threading.Thread(target=answer, daemon=True).start()
            with pytest.raises(ConnectionError, match="not process 0 of this run"):
                joining.connect(("127.0.0.1", door.getsockname()[1]), 1, 2, 5)


def test_a_machine_that_is_gone_is_noticed_with_data_in_flight_too():
    address = ("127.0.0.1", free_port())
    joined = each(
        lambda: joining.accept(address, 2, 10), lambda: joining.connect(address, 1, 2, 10)
    )
    for sockets, _ in joined:
        for connection in sockets.values():
            option = lambda name, of=connection: of.getsockopt(socket.IPPROTO_TCP, name)
            assert option(socket.TCP_USER_TIMEOUT) == 30_000
            assert option(socket.TCP_KEEPIDLE) + 4 * option(socket.TCP_KEEPINTVL) == 30
    close(*joined)


@pytest.mark.parametrize(
    "text, found",
    [
        ("host0:1234", ("host0", 1234)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:1234", ("::1", 1234)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_an_address_is_read(text, found):
    assert joining.host_port(text) == found


@pytest.mark.parametrize(
    "text",
    "host :1 host: host:x host:0 host:65536 host:-1 ::1 ::1:1234 [::1] []:1 [::1:1 [::1]1 fd00::2"
    " [host]:1 ho]st:1 host:²".split(),
)
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="must be HOST:PORT .* in brackets"):
        joining.host_port(text)


JOIN = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from ppo_jax.arguments import ProcessArgs
from ppo_jax.agreement import exchange
from ppo_jax.preemption import Preemption
from ppo_jax.processes import joined
with joined(ProcessArgs(sys.argv[1], 2, int(sys.argv[2]), join_seconds=60), Preemption()):
    import jax
    print(exchange("a", jax.device_count()), jax.process_index())
"""


@pytest.mark.skipif(not ipv6_is_here(), reason="this machine has no IPv6")
def test_processes_join_over_ipv6():
    address = f"[::1]:{free_port()}"
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    # JAX would go by it, and to another port than the others do.
    flags["JAX_COORDINATOR_BIND_ADDRESS"] = "127.0.0.1:1"
    begin = lambda k: subprocess.Popen(
        [sys.executable, "-c", JOIN, address, str(k)],
        env=os.environ | flags,
        stdout=subprocess.PIPE,
        text=True,
    )
    for k, process in enumerate([begin(k) for k in range(2)]):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.splitlines()[-1] == f"[2, 2] {k}"
