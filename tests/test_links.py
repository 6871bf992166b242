"""Values between processes, and the end of one: with threads of this process for processes."""

import socket
import threading
import time

import pytest

from ppo_jax import links
from ppo_jax.links import Ending, Links, SpoiledError
from process_runs import free_port


@pytest.fixture
def three():
    """Three joined ends, and what each was told of endings."""
    address, told = ("127.0.0.1", free_port()), {k: [] for k in range(3)}
    join = lambda k: lambda: links.connect(address, k, 3, 10)
    found = each(lambda: links.accept(address, 3, 10), join(1), join(2))
    ends = [Links(k, *found[k], on_ending=told[k].append) for k in range(3)]
    yield ends, told, found
    for sockets, _ in found:
        for connection in sockets.values():
            connection.close()


def each(*acts):
    """What each act gives, or the OSError that it raises, all at once."""
    results = {}

    def run(k, act):
        try:
            results[k] = act()
        except OSError as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k, act)) for k, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [results[k] for k in range(len(acts))]


def told_of(told, k):
    deadline = time.monotonic() + 5
    while not told[k] and time.monotonic() < deadline:
        time.sleep(0.01)
    return told[k]


def end_of(connection):
    """As the system closes the connections of a process that is gone."""
    connection.shutdown(socket.SHUT_RDWR)


def test_all_get_what_each_gave_in_their_order(three):
    ends, _, _ = three
    for number in range(20):
        for k, end in enumerate(ends):
            end.post("a", [number, k])
    for number in range(20):
        expected = [[number, k] for k in range(3)]
        assert each(*(lambda end=end: end.collect("a") for end in ends)) == [expected] * 3


def test_names_do_not_mix(three):
    ends, _, _ = three
    for end in ends:
        end.post("b", end.index)
        end.post("a", -end.index)
    assert [end.collect("a") for end in ends] == [[0, -1, -2]] * 3
    assert [end.collect("b") for end in ends] == [[0, 1, 2]] * 3


def test_nobody_waits_for_one_who_cannot(three):
    ends, _, _ = three
    ends[0].post("save 3 x", None)

    def wait():
        try:
            return ends[0].collect("save 3 x")
        except SpoiledError as error:
            return str(error)

    ends[2].spoil("save 3 ", "no space")
    assert each(wait) == ["no space"]
    with pytest.raises(SpoiledError, match="no space"):
        ends[1].post("save 3 y", None)
        ends[1].collect("save 3 y")
    for end in ends:
        end.post("save 4 x", end.index)
    assert [end.collect("save 4 x") for end in ends] == [[0, 1, 2]] * 3


def test_one_that_is_gone_without_a_word(three):
    _, told, found = three
    end_of(found[1][0][0])
    host = socket.gethostname()
    for k in (0, 2):
        assert told_of(told, k) == [Ending(1, host, None, "", True)]


def test_the_first_one_gone_without_a_word(three):
    _, told, found = three
    end_of(found[0][0][1])
    assert told_of(told, 1) == [Ending(0, socket.gethostname(), None, "", True)]


@pytest.mark.parametrize("teller", [0, 2])
def test_one_that_says_why_it_ends(three, teller):
    ends, told, _ = three
    ends[teller].tell(7, "reward x raised")
    for k in {0, 1, 2} - {teller}:
        (ending,) = told_of(told, k)
        assert ending[0] == teller and ending[2:] == (7, "reward x raised", False)
        assert ends[k].wait_ending(0) == ending


def test_one_that_is_done(three):
    ends, told, found = three
    for k in (1, 2):
        ends[k].part()
        end_of(found[k][0][0])
    began = time.monotonic()
    ends[0].wait_gone(5)
    assert time.monotonic() - began < 2 and told[0] == []


def test_a_process_that_does_not_come_is_named_to_all():
    address = ("127.0.0.1", free_port())
    errors = each(lambda: links.accept(address, 4, 0.5), lambda: links.connect(address, 2, 4, 10))
    assert [str(error) for error in errors] == ["process 1, 3 of 4 did not come"] * 2


def test_a_first_process_that_does_not_come():
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        links.connect(("127.0.0.1", free_port()), 1, 2, 0.5)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("own, count", [(1, 3), (0, 2)])
def test_one_of_another_run_is_refused(own, count):
    address = ("127.0.0.1", free_port())
    errors = each(
        lambda: links.accept(address, 2, 5), lambda: links.connect(address, own, count, 5)
    )
    for error in errors:
        assert f"process {own} of {count} on " in str(error), errors


def test_a_stranger_is_let_go():
    address = ("127.0.0.1", free_port())

    def strange():
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(address) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\n")
                    return stranger.recv(1)
            except ConnectionRefusedError:
                time.sleep(0.02)

    def join():
        time.sleep(0.5)
        return links.connect(address, 1, 2, 5)

    (sockets, hosts), said, (mine, same) = each(lambda: links.accept(address, 2, 10), strange, join)
    assert said == b"" and set(sockets) == {1}
    assert hosts == same == dict.fromkeys((0, 1), socket.gethostname())
    for connection in (*mine.values(), *sockets.values()):
        connection.close()
