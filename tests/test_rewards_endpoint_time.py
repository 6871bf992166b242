"""A reward over HTTP names a server that hangs before the time of its batch is over."""

import contextlib
import inspect
import socket
import threading
import time

import pytest

from ppo_jax.config import RewardOptions
from ppo_jax.errors import RewardError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.endpoint import endpoint
from ppo_jax.rewards.host import Rows
from ppo_jax.rewards.pool import open_pool

DEFAULTS = {p.name: p.default for p in inspect.signature(endpoint).parameters.values()}
TRIES, SECONDS = DEFAULTS["retries"] + 1, RewardOptions().timeout
EXPERIMENT = """
from ppo_jax.config import Config
from ppo_jax.rewards.endpoint import endpoint
BASE, REWARD = Config(), endpoint({url!r}, timeout={timeout}, backoff={backoff}, name="judge")
"""


def test_the_defaults_fit_into_the_time_of_a_batch():
    hangs = TRIES * DEFAULTS["timeout"] + DEFAULTS["backoff"] * (2 ** (TRIES - 1) - 1)
    assert hangs < 0.9 * SECONDS / 2  # the half that on_error=mask leaves
    assert TRIES * DEFAULTS["timeout"] + (TRIES - 1) * DEFAULTS["max_wait"] < 0.95 * SECONDS


@pytest.fixture
def silent(monkeypatch):
    """A server that takes connections and says nothing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/score"


BEGINNINGS = {
    "header": ("http", b"HTTP/1.1 200 OK\r\nX-Drop: "),
    "refusal": ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "handshake": ("https", b"\x16\x03\x03\x40\x00"),  # a record of TLS, 16 KiB long
}


def drips(connection, first, over):
    """The beginning of a reply that never ends, byte by byte."""
    with contextlib.suppress(OSError), connection:  # who asked has gone
        connection.recv(1 << 16)
        connection.sendall(first)
        while not over.wait(0.05):
            connection.sendall(b"x")


def threads_end():
    """Those that requests are sent from."""
    threads = [thread for thread in threading.enumerate() if thread.name == "http"]
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


@pytest.fixture(params=BEGINNINGS)
def dripping(request, monkeypatch):
    """A server that answers everyone, so slowly that no read has to wait; and its threads."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    scheme, first = BEGINNINGS[request.param]
    taken, over, threads = socket.create_server(("127.0.0.1", 0)), threading.Event(), []

    def serve():
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = taken.accept()
                threads.append(threading.Thread(target=drips, args=(connection, first, over)))
                threads[-1].start()

    with taken:
        threading.Thread(target=serve, daemon=True).start()
        yield f"{scheme}://127.0.0.1:{taken.getsockname()[1]}/score", threads
        over.set()
        taken.shutdown(socket.SHUT_RDWR)


def test_a_reply_that_never_ends_has_no_more_time(dripping):
    url, served = dripping
    start = time.monotonic()
    with pytest.raises(RewardError) as raised:
        endpoint(f"{url}?key=hidden", timeout=0.5, retries=1, backoff=0.01)(["p"], ["r"])
    assert 1 <= time.monotonic() - start < 15
    assert str(raised.value) == f"{url} did not answer in 0.5 s; tried 2 times"
    for thread in served:  # which end when nobody listens any more
        thread.join(10)
    assert len(served) == 2 and not any(thread.is_alive() for thread in served)
    assert threads_end()


def test_a_name_that_is_not_found_in_time(monkeypatch):
    """`getaddrinfo` knows no time limit."""
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20) and [])
    start = time.monotonic()
    with pytest.raises(RewardError, match="^http://judge/x did not answer in 0.3 s; tried once$"):
        endpoint("http://judge/x", timeout=0.3, retries=0)(["p"], ["r"])
    assert time.monotonic() - start < 15
    over.set()


def test_a_name_that_is_found_too_late(monkeypatch):
    """Nothing is sent then, credentials least of all."""
    over, find = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: over.wait(20) and find(*a, **k))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RewardError, match="did not answer in 0.3 s; tried once$"):
            endpoint(url, timeout=0.3, retries=0, headers={"Key": "secret"})(["p"], ["r"])
        over.set()
        assert threads_end()
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1) == b""


@pytest.mark.parametrize("on_error", ["abort", "mask"])
def test_a_server_that_hangs_is_named(silent, tmp_path, on_error):
    """All defaults, in a tenth of the time, through the pool of a run."""
    scaled = {name: DEFAULTS[name] / 10 for name in ("timeout", "backoff")}
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(url=f"{silent}?key=hidden", **scaled))
    (part,) = parse_rewards(endpoint(silent, name="judge"))
    rows = Rows([4, 5], ["p", "q"], ["a", "bbb"], {})
    options = RewardOptions(timeout=SECONDS / 10, on_error=on_error)
    said = f"{silent} did not answer in {scaled['timeout']:g} s; tried {TRIES} times"
    with open_pool(path, tmp_path / "log", options) as pool:
        if on_error == "mask":
            failed = pool.call(part, rows, seed=0).failed
            assert set(failed) == {4, 5} and all(said in why for why in failed.values())
            return
        with pytest.raises(RewardError) as raised:
            pool.call(part, rows, seed=0)
        assert said in str(raised.value) and "hidden" not in str(raised.value)
