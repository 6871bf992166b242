"""The processes of one run: how they find each other at the start, and how they end together.

Each runs the same command. On Cloud TPU, Slurm, Open MPI and Kubernetes the cluster says which one
a process is; elsewhere --coordinator, --processes and --process do. The rest of the program asks
`index`, `count` and `is_writer`, none of which opens the devices.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from ppo_jax import clusters, joining, relay
from ppo_jax.arguments import ProcessArgs
from ppo_jax.errors import ConfigError, PPOJaxError, Preempted
from ppo_jax.links import Ending, Links
from ppo_jax.preemption import Preemption, within, write_line
from ppo_jax.text import one_line

SEEN_SECONDS = 1.0  # for the end of another process to be known, which may be why this one fails
OWN_SECONDS = 5.0  # for a process to end by itself, having seen what another one ends with
LAST_SECONDS = 60.0  # for what it still writes then, and for the first process to outlast others


class Group:
    """This process among several."""

    def __init__(self, index: int, count: int, host: str, preemption: Preemption):
        self.index, self.count, self.preemption = index, count, preemption
        self.host = host  # of the first one
        self.devices: list[int] | None = None  # of its machine; None: all
        self.links: Links
        self.leaving = threading.Event()  # the main thread ends by itself
        self.on_lost: Callable[[PPOJaxError], None] = lambda error: None

    def ended(self, ending: Ending) -> None:
        """Another process has ended: this one does, in a thread beside whatever it does."""
        if self.leaving.wait(0 if ending.at_once else OWN_SECONDS):
            time.sleep(LAST_SECONDS)
        # A disk that is gone as well keeps nobody.
        within(LAST_SECONDS, lambda: self._say(ending))
        os._exit(Preempted.exit_code if ending.code is None else ending.code)

    def _say(self, ending: Ending) -> None:
        """To the user, and to whom `on_lost` names."""
        who = f"process {ending.process} on {ending.host}"
        if ending.code in (None, Preempted.exit_code):
            how = f" ({ending.line})" if ending.line else " without a word"
            have = self.preemption.have()
            line = f"{who} ended{how}; {have}; the same command goes on from there"
            write_line(line)
        else:
            line = f"{who}: {ending.line}"
            write_line(f"error: {line}")
        kind = Preempted if ending.code == Preempted.exit_code else PPOJaxError
        with contextlib.suppress(Exception):
            self.on_lost(kind(line))

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
def on_lost(act: Callable[[PPOJaxError], None]) -> Iterator[None]:
    """Within it: where another process has ended, `act` is called with an error that says so before
    this process ends; Preempted if the other one was, else PPOJaxError.

    It is called in a thread beside the main one, which goes on with whatever it does, and has
    LAST_SECONDS. What it raises is lost.
    """
    if _group is None:
        yield
        return
    before, _group.on_lost = _group.on_lost, act
    try:
        yield
    finally:
        _group.on_lost = before


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
        _initialize(group)
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
    global _group
    check(args)
    asked = args.coordinator is not None
    cluster = None if asked or args.distributed == "off" else clusters.detect(os.environ)
    if args.processes == 1 or not (asked or cluster):
        return None
    what = cluster or f"--coordinator={args.coordinator}"
    devices = clusters.local_devices(os.environ)
    kind: type[PPOJaxError] = ConfigError
    try:
        address, total, own = _place(args, cluster)
        if cluster is not None:  # and says who they are: another start may find them all there
            kind = PPOJaxError
        group = _link(address, total, own, preemption, args.join_seconds)
    except (OSError, ValueError) as error:  # ValueError: of a host that no name server would know
        raise kind(
            f"{what}: the processes of this run did not find each other ({one_line(error)}; "
            f"--join_seconds={args.join_seconds:g})"
        ) from None
    preemption.tell, group.devices = group.tell, devices
    _group = group
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
    try:
        joining.host_port(args.coordinator)
    except ValueError as error:
        raise ConfigError(f"--coordinator={args.coordinator}: {error}") from None
    if args.processes < 1:
        raise ConfigError(f"--processes={args.processes}: must be at least 1")
    if not 0 <= args.process < args.processes:
        raise ConfigError(
            f"--process={args.process}: must be 0 to {args.processes - 1}, with --processes "
            f"{args.processes}"
        )


def _place(args: ProcessArgs, cluster: str | None) -> tuple[tuple[str, int], int, int]:
    """((host, port) of the first process, number of processes, which one this is)."""
    if cluster is not None:
        return clusters.place(os.environ, cluster, args.join_seconds)
    assert args.coordinator and args.processes is not None and args.process is not None
    return joining.host_port(args.coordinator), args.processes, args.process


def _link(
    address: tuple[str, int], total: int, own: int, preemption: Preemption, seconds: float
) -> Group:
    if own == 0:
        sockets, hosts = joining.accept(address, total, seconds)
    else:
        sockets, hosts = joining.connect(address, own, total, seconds)
    group = Group(own, total, address[0], preemption)
    group.links = Links(own, sockets, hosts, on_ending=group.ended)
    return group


def _initialize(group: Group) -> None:
    """Join the processes' JAX, whose coordinator has a port of its own. Raises ConfigError.

    They are all there: where one is waited for in vain, JAX ends the others in its own way.
    """
    import jax

    with joining.listener(0) as free:
        group.links.post("coordinator", free.getsockname()[1])
    port = group.links.collect("coordinator")[0]
    # It would handle SIGTERM, which is ours to do.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        first = group.index == 0
        jax.distributed.initialize(
            f"localhost:{port}" if first else relay.relay(group.host, port, LAST_SECONDS),
            group.count,
            group.index,
            local_device_ids=group.devices,
            cluster_detection_method="deactivate",  # it would give each process of Slurm one GPU
            coordinator_bind_address=f"[::]:{port}",
        )
    except Exception as error:  # of a socket, of gRPC, of JAX, which has been used already
        raise ConfigError(f"jax.distributed: {one_line(error)}") from None
