"""TCP connections of a run's processes, each to the first one: small values that all of them give
and get, and the end of any of them, which the others learn at once.

The network of the devices would tell of a process that is gone late, in pages, or never.
"""

import contextlib
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ppo_jax.text import one_line

LONGEST = 1 << 26  # bytes of a line: the values of all processes, each some kilobytes
# What messages are made of.
FIELDS = {
    "name": str,
    "round": int,
    "values": list,
    "spoilt": str,
    "why": str,
    "process": int,
    "code": int | None,
    "line": str,
    "at_once": bool,
}


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
        ending = Ending(peer, self._hosts[peer], None, "", True)
        try:
            # A connection that breaks and one that is closed are the same end.
            with contextlib.suppress(OSError), connection.makefile("rb") as lines:
                while (line := lines.readline(LONGEST)).endswith(b"\n"):
                    self._handle(peer, _message(line))
                if len(line) == LONGEST:
                    raise ValueError(f"a line longer than {LONGEST} bytes")
        except Exception as error:  # whatever it is, nobody is to wait for this one
            line = f"what it sent cannot be understood ({one_line(error)})"
            ending = ending._replace(code=1, line=line)
        with self._changed:
            self._gone.add(peer)
            self._changed.notify_all()
            parted = peer in self._parted
        if not parted or ending.code is not None:
            self._note(peer, ending)

    def _handle(self, peer: int, message: dict[str, Any]) -> None:
        if "value" in message:
            self._take(peer, message)
        elif "values" in message:
            if len(message["values"]) != self.count:
                raise ValueError(f"{len(message['values'])} values of {self.count}")
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
        else:
            raise ValueError("nothing that is known")

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


def _message(line: bytes) -> dict[str, Any]:
    """What a line says. Raises what it is that keeps it from being understood."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise TypeError("not an object")
    for name, value in message.items():
        if not isinstance(value, FIELDS.get(name, object)):
            raise TypeError(f"{name} is a {type(value).__name__}")
    if message.get("code") not in (None, *range(1, 256)):  # those that a process can end with
        raise ValueError(f"code {message['code']}")
    return message
