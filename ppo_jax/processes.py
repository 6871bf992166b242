"""The processes of one run: how they find each other at the start, and how they end together.

Each runs the same command. On Cloud TPU, Slurm, Open MPI and Kubernetes the cluster says which one
a process is; elsewhere --coordinator, --processes and --process do. The rest of the program asks
`index`, `count` and `is_writer`, none of which opens the devices.
"""

import contextlib
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from ppo_jax import clusters, links
from ppo_jax.arguments import ProcessArgs
from ppo_jax.errors import ConfigError, PPOJaxError, Preempted
from ppo_jax.links import Ending, Links
from ppo_jax.preemption import Preemption
from ppo_jax.text import one_line

KEY = "ppo_jax/links"  # of the port and token of the first process
SEEN_SECONDS = 1.0  # for the end of another process to be known, which may be why this one fails
OWN_SECONDS = 5.0  # for a process to end by itself, having seen what another one ends with
LAST_SECONDS = 60.0  # for what it still writes then, and for the first process to outlast others


class Group:
    """This process among several."""

    def __init__(self, index: int, count: int, preemption: Preemption):
        self.index, self.count, self.preemption = index, count, preemption
        self.links: Links
        self.leaving = threading.Event()  # the main thread ends by itself

    def ended(self, ending: Ending) -> None:
        """Another process has ended: this one does, in a thread beside whatever it does."""
        if self.leaving.wait(0 if ending.at_once else OWN_SECONDS):
            time.sleep(LAST_SECONDS)
        who = f"process {ending.process} on {ending.host}"
        if ending.code in (None, Preempted.exit_code):
            how = f" ({ending.line})" if ending.line else " without a word"
            step = self.preemption.durable()
            have = "nothing was saved yet" if step is None else f"step {step} is saved"
            line = f"{who} ended{how}; {have}; the same command goes on from there"
        else:
            line = f"error: {who}: {ending.line}"
        _write_line(line)
        os._exit(Preempted.exit_code if ending.code is None else ending.code)

    def tell(self, code: int, line: str) -> None:
        """Before this process ends at once: the others do as well."""
        self.links.tell(code, line, at_once=True)
        if self.index == 0:  # what they are joined by ends with it
            self.links.wait_gone(OWN_SECONDS)


_group: Group | None = None
_broken = False  # some of the processes are gone, or never came


def index() -> int:
    return 0 if _group is None else _group.index


def count() -> int:
    return 1 if _group is None else _group.count


def joined_links() -> Links | None:
    """What joins this process to the others; None: there are no others."""
    return None if _group is None else _group.links


def is_writer() -> bool:
    """Whether this process is the one that writes the run's files and to the screen."""
    return index() == 0


@contextlib.contextmanager
def joined(args: ProcessArgs, preemption: Preemption) -> Iterator[None]:
    """Within it this process is one of the run, if there are several; they end together.

    Raises ConfigError where they cannot be joined.
    """
    group = _join(args, preemption)
    if group is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        _leave_with(group, error)
        raise
    group.links.post("end", None)
    group.links.collect("end")
    group.leaving.set()
    group.links.part()
    import jax

    jax.distributed.shutdown()


def _leave_with(group: Group, error: BaseException) -> None:
    """Tell the others of the error, unless it came of one of them, which ends this process."""
    global _broken
    known = isinstance(error, PPOJaxError)
    if not isinstance(error, Preempted):
        ending = group.links.wait_ending(SEEN_SECONDS)
        if ending is not None and (ending.at_once or not known):
            time.sleep(LAST_SECONDS)
    group.leaving.set()
    _broken = True
    group.links.tell(error.exit_code if known else 1, one_line(error))
    if not known:
        traceback.print_exc()
        leave(1)


def leave(code: int) -> None:
    """End this process now if others are gone, the first one last: what JAX does when Python ends
    would wait for them. Else nothing."""
    if not _broken:
        return
    if _group is not None and _group.index == 0:
        _group.links.wait_gone(LAST_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _join(args: ProcessArgs, preemption: Preemption) -> Group | None:
    global _group, _broken
    check(args)
    asked = args.coordinator is not None
    cluster = None if asked or args.distributed == "off" else clusters.detect(os.environ)
    if args.processes == 1 or not (asked or cluster):
        return None
    import jax

    deadline = time.monotonic() + args.join_seconds
    if asked:
        _find_coordinator(args)
    _broken = True  # until all have been found
    _initialize(args, cluster)
    state: Any = jax._src.distributed.global_state
    group = Group(state.process_id, state.num_processes, preemption)
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    try:
        found = _link(group, state.client, host, max(1.0, deadline - time.monotonic()))
    except (OSError, RuntimeError) as error:  # a time that has run out is an OSError
        raise ConfigError(
            f"process {group.index} of {group.count} on {socket.gethostname()} is not joined to "
            f"the first one on {host} ({one_line(error)})"
        ) from None
    group.links = Links(group.index, *found, on_ending=group.ended)
    preemption.tell = group.tell
    _group, _broken = group, False
    return group


def check(args: ProcessArgs) -> None:
    """ConfigError naming the flag that lacks, or does not go with the others."""
    own = {f"--{n}": getattr(args, n) for n in ("coordinator", "processes", "process")}
    given = [flag for flag, value in own.items() if value is not None]
    lacking = [flag for flag in own if flag not in given]
    if given and args.distributed == "off":
        raise ConfigError(f"{given[0]}: does not go with --distributed off")
    if given and lacking:
        raise ConfigError(
            f"{', '.join(lacking)}: needed beside {', '.join(given)}: processes that find each "
            "other by flags are given --coordinator HOST:PORT --processes N --process K"
        )
    if not given:
        return
    assert args.coordinator is not None and args.processes is not None and args.process is not None
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={args.coordinator}: must be HOST:PORT of process 0")
    if args.processes < 1:
        raise ConfigError(f"--processes={args.processes}: must be at least 1")
    if not 0 <= args.process < args.processes:
        raise ConfigError(
            f"--process={args.process}: must be 0 to {args.processes - 1}, with --processes "
            f"{args.processes}"
        )


def _initialize(args: ProcessArgs, cluster: str | None) -> None:
    """`jax.distributed.initialize`. Raises ConfigError."""
    import jax

    what = cluster or f"--coordinator={args.coordinator}"
    try:
        jax.distributed.initialize(
            coordinator_address=args.coordinator,
            num_processes=args.processes,
            process_id=args.process,
            initialization_timeout=math.ceil(args.join_seconds),
        )
    except Exception as error:  # of gRPC, of the cluster's own interface, or JAX's about both
        raise ConfigError(
            f"{what}: the processes did not find each other within --join_seconds="
            f"{args.join_seconds:g} ({one_line(error)})"
        ) from None


def _find_coordinator(args: ProcessArgs) -> None:
    """Wait until process 0 listens, which JAX would do with pages of text; in process 0, see that
    it can."""
    assert args.coordinator is not None
    host, _, port = args.coordinator.rpartition(":")
    if args.process == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise ConfigError(
                f"--coordinator={args.coordinator}: process 0 cannot listen on port {port} "
                f"({error.strerror})"
            ) from None
        return
    deadline = time.monotonic() + args.join_seconds
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--coordinator={args.coordinator}: process 0 was not there within "
                    f"--join_seconds={args.join_seconds:g} ({one_line(error)})"
                ) from None
        time.sleep(0.2)


def _link(group: Group, client: Any, host: str, seconds: float):
    if group.index == 0:
        listener, port, token = links.listen()
        client.key_value_set(KEY, f"{port} {token}")
        return links.accept(listener, token, group.count, seconds)
    port, token = client.blocking_key_value_get(KEY, int(1000 * seconds)).split()
    return links.connect((host, int(port)), token, group.index, seconds)


def _write_line(line: str) -> None:
    # Not through Python's buffers: a thread that was interrupted may hold their lock.
    stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
    with contextlib.suppress(OSError):
        os.write(stderr, f"ppo-jax: {line}\n".encode())
