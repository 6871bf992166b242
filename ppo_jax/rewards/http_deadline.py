"""HTTP with a deadline over all of a request: a socket's own limit is one for each byte that comes,
and looking up a name has none."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


def within(seconds: float, work: Callable[[urllib.request.OpenerDirector], Result]) -> Result:
    """`work(opener)`, the opener one that follows no redirects; what it raises is raised here.

    Raises TimeoutError when the time is over. It runs in a thread of its own, which is left behind
    then: its connections are shut, so that it ends, and one it still opens is closed unused.
    """
    done, connections = Future[Result](), _Connections()
    handlers = _NoRedirect, _Http(connections), _Https(connections)

    def run() -> None:
        try:
            done.set_result(work(urllib.request.build_opener(*handlers)))
        except BaseException as error:  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="http").start()
    try:
        return done.result(seconds)
    finally:
        connections.end()


class _Connections:
    """The connections of one request: none is left, nor comes into being, after `end`."""

    def __init__(self):
        self.over = threading.Event()
        self.opened: list[socket.socket] = []

    def open(self, *args: Any) -> socket.socket:
        """`socket.create_connection`. Raises TimeoutError after `end`, before a byte is sent."""
        connection = socket.create_connection(*args)
        # TLS and then the reply take the socket itself over.
        self.opened.append(connection.dup())
        if self.over.is_set():  # looked up or connected too late
            connection.close()
            self.end()
            raise TimeoutError
        return connection

    def end(self) -> None:
        self.over.set()
        for connection in self.opened:
            with contextlib.suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # its status is then an error
        return None


class _Noting(urllib.request.AbstractHTTPHandler):
    """Opens sockets by `connections`."""

    def __init__(self, connections: _Connections):
        super().__init__()
        self.connections = connections

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def connection(*args: Any, **more: Any) -> Any:
            made = http_class(*args, **more)
            made._create_connection = self.connections.open  # before TLS, and before a proxy
            return made

        return super().do_open(connection, req, **options)


class _Http(_Noting, urllib.request.HTTPHandler):
    pass


class _Https(_Noting, urllib.request.HTTPSHandler):
    pass
