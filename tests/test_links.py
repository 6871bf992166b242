"""Values between processes, and the end of one: with threads of this process for processes."""

import socket
import threading
import time

import pytest

from ppo_jax import links
from ppo_jax.links import Ending, Links, SpoiledError


@pytest.fixture
def three():
    """Three joined ends, and what each was told of endings."""
    listener, port, token = links.listen()
    found, told = {}, {k: [] for k in range(3)}
    accepting = threading.Thread(
        target=lambda: found.update({0: links.accept(listener, token, 3, 10)})
    )
    accepting.start()
    join = lambda k: found.update({k: links.connect(("127.0.0.1", port), token, k, 10)})
    others = [threading.Thread(target=join, args=(k,)) for k in (2, 1)]
    for thread in others:
        thread.start()
    for thread in (accepting, *others):
        thread.join(10)
    ends = [Links(k, *found[k], on_ending=told[k].append) for k in range(3)]
    yield ends, told, found
    for sockets, _ in found.values():
        for connection in sockets.values():
            connection.close()


def each(*acts):
    """What each act gives, all at once."""
    results = {}
    threads = [
        threading.Thread(target=lambda k=k, act=act: results.update({k: act()}))
        for k, act in enumerate(acts)
    ]
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
    for connection in found[0][0].values():
        end_of(connection)
    for k in (1, 2):
        (ending,) = told_of(told, k)
        assert (ending.process, ending.code) == (0, None)


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


def test_a_process_that_does_not_come_is_named():
    listener, port, token = links.listen()
    with pytest.raises(TimeoutError, match="process 1, 2 did not connect"):
        links.accept(listener, token, 3, 0.2)


def test_a_stranger_is_let_go():
    listener, port, token = links.listen()
    found = {}
    accepting = threading.Thread(
        target=lambda: found.update(a=links.accept(listener, token, 2, 10))
    )
    accepting.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        assert stranger.recv(1) == b""
    mine, hosts = links.connect(("127.0.0.1", port), token, 1, 10)
    accepting.join(10)
    sockets, same = found["a"]
    assert hosts == same == dict.fromkeys((0, 1), socket.gethostname()) and set(sockets) == {1}
    for connection in (*mine.values(), *sockets.values()):
        connection.close()
