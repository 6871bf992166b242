"""Values between processes, and the end of one: with threads of this process for processes."""

import json
import socket
import threading
import time

import pytest

from ppo_jax import agreement, errors, joining, processes
from ppo_jax.links import LONGEST, Ending, Links, SpoiledError
from ppo_jax.preemption import Preemption
from process_runs import free_port


@pytest.fixture
def three():
    """Three joined ends, and what each was told of endings."""
    address, told = ("127.0.0.1", free_port()), {k: [] for k in range(3)}
    join = lambda k: lambda: joining.connect(address, k, 3, 10)
    found = each(lambda: joining.accept(address, 3, 10), join(1), join(2))
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


GARBLED = {
    "not JSON": b"GET / HTTP/1.1",
    "not text": b"\xff\xfe",
    "not an object": b"[1]",
    "too deep": b"[" * 100_000,
    "nothing known": b'{"hello": 1}',
    "no round": b'{"name": "a", "value": 1}',
    "a name that is none": b'{"name": [], "round": 0, "value": 1}',
    "too few values": b'{"name": "a", "round": 0, "values": [1]}',
    "a prefix that is none": b'{"spoilt": 3, "why": "x"}',
    "a process that is not there": b'{"code": 1, "line": "", "at_once": true, "process": 9}',
    "a code that is none": b'{"code": "1", "line": "", "at_once": true, "process": 1}',
    "a code that would be taken for 0": b'{"code": 256, "line": "", "at_once": true, "process": 1}',
}


@pytest.mark.parametrize("sent", GARBLED.values(), ids=GARBLED)
def test_one_that_cannot_be_understood_ends_all(three, sent):
    _, told, found = three
    found[1][0][0].sendall(sent + b"\n")
    for k in (0, 2):
        (ending,) = told_of(told, k)
        assert (ending.process, ending.host, ending.code) == (1, socket.gethostname(), 1)
        assert ending.at_once and ending.line.startswith("what it sent cannot be understood (")


def test_a_first_process_that_cannot_be_understood(three):
    _, told, found = three
    found[0][0][2].sendall(b"{}\n")
    (ending,) = told_of(told, 2)
    assert ending.process == 0 and "cannot be understood" in ending.line


def test_a_line_has_a_limit(three, monkeypatch):
    monkeypatch.setattr("ppo_jax.links.LONGEST", 1000)
    ends, told, found = three
    ends[1].post("a", None)  # after which the limit is read again
    found[1][0][0].sendall(json.dumps({"name": "a", "round": 0, "value": "x" * 2000}).encode())
    (ending,) = told_of(told, 2)
    assert ending.process == 1 and "longer than 1000 bytes" in ending.line
    assert LONGEST > 1 << 24  # facts of many processes come in one line


def fails(kind):
    def act():
        raise kind("no space")

    return act


class Own(errors.StorageError):
    """An error that `errors` does not have."""


@pytest.mark.parametrize("kind", [errors.StorageError, Own, ValueError, KeyError])
def test_what_one_raises_all_raise(three, monkeypatch, kind):
    ends, _, _ = three
    acts = [lambda: 1, fails(kind), lambda: 3]
    own = threading.local()
    monkeypatch.setattr(agreement.processes, "joined_links", lambda: own.links)

    def take_part(k):
        own.links = ends[k]
        try:
            return agreement.together("act", acts[k])
        except Exception as error:
            return error

    raised = each(*(lambda k=k: take_part(k) for k in range(3)))
    known = issubclass(kind, errors.StorageError)
    expected = errors.StorageError if known else errors.PPOJaxError
    assert type(raised[1]) is kind
    for error in (raised[0], raised[2]):
        assert type(error) is expected and str(error).startswith("process 1: ")


@pytest.mark.parametrize("name", ["Exception", "__builtins__", "nothing", 5, []])
def test_only_errors_that_are_known_are_raised_by_name(monkeypatch, name):
    monkeypatch.setattr(agreement.processes, "joined_links", lambda: object())
    said = [{"value": 1}, {"error": name, "text": "x"}]
    monkeypatch.setattr(agreement, "exchange", lambda *_: said)
    with pytest.raises(errors.PPOJaxError, match="process 1: x"):
        agreement.together("act", lambda: 1)


@pytest.fixture
def ended(monkeypatch):
    """What `Group.ended` does in the first of two processes: (exit code, what `on_lost` got)."""
    group, codes, lost = processes.Group(0, 2, "h", Preemption()), [], []
    monkeypatch.setattr(processes, "_group", group)
    monkeypatch.setattr(processes.os, "_exit", codes.append)

    def end(ending, act=lost.append):
        with processes.on_lost(act):
            group.ended(ending)
        return codes.pop(), lost

    yield end, group
    group.ended(Ending(1, "h", None, "", True))  # when nobody asks any more
    assert codes == [75]


@pytest.mark.parametrize(
    "code, line, kind, said",
    [
        (None, "", errors.PPOJaxError, "ended without a word; what was saved before stays; "),
        (75, "preempted: x", errors.Preempted, "ended (preempted: x); what was saved before"),
        (7, "reward x", errors.PPOJaxError, "process 1 on h: reward x"),
    ],
)
def test_whom_it_concerns_is_told_that_another_is_lost(ended, capfd, code, line, kind, said):
    end, _ = ended
    exit_code, (error,) = end(Ending(1, "h", code, line, True))
    assert exit_code == (code or 75) and type(error) is kind and said in str(error)
    assert str(error) in capfd.readouterr().err


def test_nothing_keeps_a_process_that_has_lost_another(ended, capfd, monkeypatch):
    end, group = ended
    monkeypatch.setattr(processes, "LAST_SECONDS", 0.2)
    assert end(Ending(1, "h", 1, "x", True), act=fails(OSError))[0] == 1
    assert end(Ending(1, "h", 1, "x", True), act=lambda error: time.sleep(5))[0] == 1
    group.preemption.durable = fails(OSError)
    assert end(Ending(1, "h", None, "", True))[0] == 75
    assert "without a word; what is saved cannot be read (no space); " in capfd.readouterr().err


def test_what_another_process_says_controls_no_terminal(ended, capfd):
    ended[0](Ending(1, "h\x1b[2J", 1, "x\ny", True))
    assert capfd.readouterr().err == "ppo-jax: error: process 1 on h\\x1b[2J: x\\ny\n"
