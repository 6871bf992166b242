"""What JAX's coordinator is reached through by the other processes. Where the process that it is in
ends, JAX would at once end this one, with pages of text and no exit code of ours; through a relay
it hears of that when its own patience is over, and `processes` has said it and ended by then.
"""

import contextlib
import socket
import threading

from ppo_jax.joining import reach

BLOCK = 1 << 16


def relay(host: str, port: int, seconds: float) -> str:
    """HOST:PORT on this machine that stands for the given one, as soon as that is there; raises
    OSError if it is not within so many seconds."""
    reach((host, port), seconds).close()
    listener = socket.create_server(("127.0.0.1", 0))
    serving = threading.Thread(target=_serve, args=(listener, (host, port)), daemon=True)
    serving.start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _serve(listener: socket.socket, address: tuple[str, int]) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(address, timeout=5)
        except OSError:
            near.close()
            continue
        far.settimeout(None)
        for pair in ((near, far), (far, near)):
            pair[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """All that comes from one end to the other; that it ended is not handed on."""
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            target.sendall(block)
    _ENDED.append((source, target))  # open for as long as the process


_ENDED: list[tuple[socket.socket, socket.socket]] = []
