"""How the processes of a run find each other: the first one listens, the others say who they are.

Both trust the network: whoever reaches the port and says the same is taken for a process of the
run. What they do not understand is let go.
"""

import contextlib
import json
import queue
import re
import socket
import threading
import time
from typing import Any

HELLO_SECONDS = 10.0  # for one that has connected to say who it is
LOOK_SECONDS = 0.05  # between two looks at who has said so
WHO = {"program": "ppo-jax", "version": 1}  # of what is said here, and over `links`
LONGEST_HELLO = 4096  # bytes
LONGEST_REPLY = 1 << 20  # the host names of all
# A machine that is gone without a word is noticed within 10 + 4 x 5 seconds; where something is on
# its way to it, those do not count, and the milliseconds do.
ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


def host_port(address: str) -> tuple[str, int]:
    """The parts of HOST:PORT or [HOST]:PORT, as an IPv6 address needs it; ValueError of others."""
    found = re.fullmatch(r"(?:\[([^][]*:[^][]*)\]|([^][:]+)):([0-9]{1,5})", address)
    if found is None or not 0 < int(found[3]) < 65536:
        raise ValueError("must be HOST:PORT of process 0, an IPv6 address in brackets")
    return found[1] or found[2], int(found[3])


def accept(
    address: tuple[str, int], count: int, seconds: float
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """In the first process: (sockets, hosts) of the others, which `connect` to this address.

    Raises OSError if it cannot be listened on, or naming those that do not come in time.
    """
    deadline = time.monotonic() + seconds
    sockets: dict[int, socket.socket] = {}
    hosts = {0: socket.gethostname()}
    with listener(address[1]) as door:
        arrived = _Arrived(door)
        try:
            while len(hosts) < count:
                connection, said = arrived.next_one(deadline)
                own, of, host = said["process"], said["processes"], said["host"]
                if of != count or own in hosts:
                    why = f"process {own} of {of} on {host} is not one that lacks, of {count}"
                    _send_line(connection, why)
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
    connection = reach(address, seconds)
    said = {**WHO, "process": own, "processes": count, "host": socket.gethostname()}
    _send_line(connection, said)
    # The others have as long.
    reply = _read_line(connection, time.monotonic() + seconds + HELLO_SECONDS, LONGEST_REPLY)
    if isinstance(reply, str):
        raise ConnectionError(reply)
    hosts: dict[int, Any] = (
        {k: reply.get(str(k)) for k in range(count)} if isinstance(reply, dict) else {0: None}
    )
    if not all(isinstance(host, str) for host in hosts.values()):
        raise ConnectionError("what answered there is not process 0 of this run, or has ended")
    return {0: _kept_alive(connection)}, hosts


def reach(address: tuple[str, int], seconds: float) -> socket.socket:
    """A connection, as soon as somebody listens there; raises OSError if nobody does in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def listener(port: int) -> socket.socket:
    """What listens on a port (0: any that is free) of all this machine's addresses."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", port), backlog=1024)


class _Arrived:
    """Those that have come and said who they are; each is heard in a thread of its own, so that
    nobody waits for a stranger."""

    def __init__(self, door: socket.socket):
        self._door = door
        self._said: queue.SimpleQueue = queue.SimpleQueue()
        door.settimeout(LOOK_SECONDS)

    def next_one(self, deadline: float) -> tuple[socket.socket, dict[str, Any]]:
        """(connection, what it said). Raises TimeoutError."""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # nobody came, or went away at once
                connection, _ = self._door.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                return self._said.get_nowait()
        raise TimeoutError

    def _hear(self, connection: socket.socket) -> None:
        said = None
        with contextlib.suppress(OSError):
            said = _read_line(connection, time.monotonic() + HELLO_SECONDS, LONGEST_HELLO)
        if _is_hello(said):
            self._said.put((connection, said))
        else:
            connection.close()


def _is_hello(said: Any) -> bool:
    """Whether it is what a process of a run says, of whatever number."""
    if not isinstance(said, dict) or not WHO.items() <= said.items():
        return False
    own, count = said.get("process"), said.get("processes")
    numbers = type(own) is int and type(count) is int and 0 < own < count
    return numbers and isinstance(said.get("host"), str)


def _send_line(connection: socket.socket, message: Any) -> None:
    connection.settimeout(HELLO_SECONDS)
    with contextlib.suppress(OSError):  # whoever it was for is gone, which is seen on reading
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket, deadline: float, longest: int) -> Any:
    """The next message, and not a byte beyond; None where there is none that is understood.

    Raises OSError where it is not there in time.
    """
    data = b""
    while not data.endswith(b"\n"):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError("no answer in time")
        connection.settimeout(left)
        block = connection.recv(1)
        if not block or len(data) >= longest:
            return None
        data += block
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ALIVE.items():
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
