"""TCP connections of a run's processes, each to the first one: small values that all of them give
and get, and the end of any of them, which the others learn at once.

The network of the devices would tell of a process that is gone late, in pages, or never.
"""

import contextlib
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

HELLO_SECONDS = 10.0  # for one that has connected to say who it is
WHO = {"program": "ppo-jax", "version": 1}  # of what is said here
LONGEST = 1 << 20  # bytes of a message before all are there
# A machine that is gone without a word is noticed within 10 + 4 x 5 seconds.
ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Ending(NamedTuple):
    """A process that has ended, or is about to."""

    process: int
    host: str
    code: int | None  # None: its connection ended without a word
    line: str  # that it told its user
    at_once: bool  # it does not wait for the others to see the same


class SpoiledError(Exception):
    """Another process cannot take part in what it was waited for."""


class Links:
    """This process's connections: of the first one to all others, of the others to the first.

    `on_ending` is told, in a thread of its own, of the first process that ends.
    """

    def __init__(
        self,
        index: int,
        sockets: Mapping[int, socket.socket],
        hosts: Mapping[int, str],
        on_ending: Callable[[Ending], None],
    ):
        self.index, self.count = index, len(hosts)
        self._sockets, self._hosts, self._on_ending = sockets, hosts, on_ending
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._given: dict[tuple[str, int], dict[int, Any]] = defaultdict(dict)  # in the first one
        self._complete: dict[tuple[str, int], list] = {}
        self._posted: dict[str, int] = defaultdict(int)
        self._collected: dict[str, int] = defaultdict(int)
        self._spoiled: dict[str, str] = {}
        self._parted: set[int] = set()  # that said so before they ended
        self._gone: set[int] = set()
        self._ending: Ending | None = None
        for peer, connection in sockets.items():
            name = f"process {peer}"
            reading = threading.Thread(
                target=self._read, args=(peer, connection), name=name, daemon=True
            )
            reading.start()

    def post(self, name: str, value: Any) -> None:
        """Give this process's value (JSON) for the next round of `name`, without waiting."""
        with self._changed:
            number = self._posted[name]
            self._posted[name] += 1
        message = {"name": name, "round": number, "value": value}
        if self.index == 0:
            self._take(0, message)
        else:
            self._send(message)

    def collect(self, name: str) -> list:
        """The values of all processes, in order, of the next round of `name`; waits for them.

        Raises SpoiledError if one of them cannot give its own.
        """
        with self._changed:
            key = name, self._collected[name]
            self._collected[name] += 1
            self._changed.wait_for(lambda: key in self._complete or self._why_spoiled(name))
            if key not in self._complete:
                raise SpoiledError(self._why_spoiled(name))
            return self._complete.pop(key)

    def spoil(self, prefix: str, why: str) -> None:
        """Let no process wait any longer for what has a name that begins so."""
        self._take_spoilt(self.index, {"spoilt": prefix, "why": why})

    def part(self) -> None:
        """Say that this process ends because it is done."""
        self._send({"parting": True})

    def tell(self, code: int, line: str, *, at_once: bool = False) -> None:
        """Say that this process ends with an error."""
        self._send({"code": code, "line": line, "at_once": at_once, "process": self.index})

    def wait_gone(self, seconds: float) -> None:
        """Until the other ends of all connections are gone, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone == set(self._sockets), seconds)

    def wait_ending(self, seconds: float) -> Ending | None:
        """The first process that ended, where one does so within that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending is not None, seconds)
            return self._ending

    def _why_spoiled(self, name: str) -> str:
        return next((why for p, why in self._spoiled.items() if name.startswith(p)), "")

    def _send(self, message: Mapping[str, Any], but: int | None = None) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            for peer, connection in self._sockets.items():
                if peer != but:
                    with contextlib.suppress(OSError):  # it is gone, which its thread will see
                        connection.sendall(data)

    def _read(self, peer: int, connection: socket.socket) -> None:
        # A connection that breaks and one that is closed are the same end.
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self._handle(peer, json.loads(line))
        with self._changed:
            self._gone.add(peer)
            self._changed.notify_all()
            parted = peer in self._parted
        if not parted:
            self._note(peer, Ending(peer, self._hosts[peer], None, "", True))

    def _handle(self, peer: int, message: dict[str, Any]) -> None:
        if "value" in message:
            self._take(peer, message)
        elif "values" in message:
            with self._changed:
                self._complete[message["name"], message["round"]] = message["values"]
                self._changed.notify_all()
        elif "spoilt" in message:
            self._take_spoilt(peer, message)
        elif "parting" in message:
            with self._changed:
                self._parted.add(peer)
        elif "code" in message:
            process, line = message["process"], message["line"]
            with self._changed:
                if process == peer:  # and not handed on
                    self._parted.add(peer)
            host, at_once = self._hosts[process], message["at_once"]
            self._note(peer, Ending(process, host, message["code"], line, at_once))

    def _take(self, peer: int, message: dict[str, Any]) -> None:
        """In the first process: hand the values round once they are complete."""
        key = message["name"], message["round"]
        with self._changed:
            self._given[key][peer] = message["value"]
            if len(self._given[key]) < self.count:
                return
            given = self._given.pop(key)
            values = self._complete[key] = [given[process] for process in range(self.count)]
            self._changed.notify_all()
        self._send({"name": key[0], "round": key[1], "values": values})

    def _take_spoilt(self, peer: int, message: dict[str, Any]) -> None:
        with self._changed:
            self._spoiled.setdefault(message["spoilt"], message["why"])
            self._changed.notify_all()
        if self.index == 0 or peer == self.index:
            self._send(message, but=peer)

    def _note(self, peer: int, ending: Ending) -> None:
        if self.index == 0:
            self._send(ending._asdict(), but=peer)
        with self._changed:
            if self._ending is not None:
                return
            self._ending = ending
            self._changed.notify_all()
        threading.Thread(target=self._on_ending, args=(ending,), daemon=True).start()


def accept(
    address: tuple[str, int], count: int, seconds: float
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """In the first process: (sockets, hosts) of the others, which `connect` to this address.

    Raises OSError if it cannot be listened on, or naming those that do not come in time.
    """
    deadline = time.monotonic() + seconds
    sockets: dict[int, socket.socket] = {}
    hosts = {0: socket.gethostname()}
    with _listener(address[1]) as listener:
        try:
            while len(sockets) < count - 1:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = listener.accept()
                said = _hello(connection)
                if said is None:
                    connection.close()
                    continue
                own, host = said["process"], said["host"]
                if said["processes"] != count or own in hosts:
                    which = f"process {own} of {said['processes']} on {host}"
                    _send_line(connection, why := f"{which} is not one that lacks, of {count}")
                    raise ConnectionError(why)
                sockets[own], hosts[own] = connection, host
            reply: Any = hosts
        except TimeoutError:
            lacking = ", ".join(str(k) for k in range(1, count) if k not in sockets)
            reply = f"process {lacking} of {count} did not come"
        except ConnectionError as error:
            reply = str(error)
    for connection in sockets.values():
        _send_line(connection, reply)
    if isinstance(reply, str):
        raise ConnectionError(reply)
    return {own: _kept_alive(connection) for own, connection in sockets.items()}, hosts


def connect(
    address: tuple[str, int], own: int, count: int, seconds: float
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """(socket to the first process, hosts). Raises OSError if it does not answer in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
    connection.settimeout(seconds + HELLO_SECONDS)  # the others have as long
    _send_line(
        connection, {**WHO, "process": own, "processes": count, "host": socket.gethostname()}
    )
    reply = _read_line(connection)
    if not isinstance(reply, dict):
        raise ConnectionError(reply or "process 0 closed the connection")
    return {0: _kept_alive(connection)}, {int(process): host for process, host in reply.items()}


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", port), backlog=1024)


def _hello(connection: socket.socket) -> dict[str, Any] | None:
    """What a process of a run says first; None of a stranger."""
    connection.settimeout(HELLO_SECONDS)
    try:
        said = _read_line(connection)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and WHO.items() <= said.items() else None


def _send_line(connection: socket.socket, message: Any) -> None:
    with contextlib.suppress(OSError):  # whoever it was for is gone, which is seen on reading
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> Any:
    """The next message, and not a byte beyond; None where the connection has ended."""
    data = b""
    while not data.endswith(b"\n"):
        block = connection.recv(1)
        if not block or len(data) > LONGEST:
            return None
        data += block
    return json.loads(data)


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ALIVE.items():
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
