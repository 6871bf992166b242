"""Checkpoints of the train state: Orbax, written in the background, whole or not at all, and with a
record of what was written (`manifest`), by which a damaged one is found before it is used.

with open_saver(folder.checkpoints, keep=2) as saver:
    save(saver, step, state)  # the state may be donated to the next step at once
"""

import contextlib
import dataclasses
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ppo_jax import faults, manifest, processes, storage
from ppo_jax.agreement import meet, on_first, spoil, together
from ppo_jax.errors import StorageError
from ppo_jax.processes import is_writer
from ppo_jax.removal import finish_removals, put_aside, remove
from ppo_jax.restore import quiet_orbax
from ppo_jax.text import one_line
from ppo_jax.types import PyTree, TrainState


@dataclasses.dataclass
class Saver:
    """The checkpoints of one run, and the save under way."""

    path: Path
    keep: int  # newest ones
    facts: Mapping[str, Any]  # about the run, for the records
    orbax: ocp.AsyncCheckpointer
    durable: int | None  # newest step on the disk
    finishing: threading.Thread | None = None
    spare: PyTree = None  # memory of the copy that the last save has read, where it needed one
    error: StorageError | None = None  # of the save that ended last, until somebody asks
    seconds: float = 0.0  # that it took until it was on the disk
    number: int = 0  # of saves begun: what processes call the same save

    @property
    def name(self) -> str:
        """Under which the processes meet in the save begun last."""
        return f"save {self.number} "


class TornError(StorageError):
    """A save that began in some processes alone: they no longer are at the same place."""


@contextlib.contextmanager
def open_saver(path: Path, keep: int, facts: Mapping[str, Any] | None = None) -> Iterator[Saver]:
    """Saves checkpoints under `path` and holds the newest `keep`, and the best where `save` is told
    how good each is.

    What an earlier process left unfinished is removed. Leaving waits for the save under way: a
    program that ends before it is done loses that checkpoint without a word. Raises StorageError if
    that save fails, unless another error is on its way.
    """
    path = storage.as_path(path).absolute()
    with quiet_orbax():
        on_first("saver", lambda: _make_ready(path))
        saver = Saver(path, keep, facts or {}, _orbax(), manifest.latest_step(path))
        try:
            yield saver
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one to report
                wait(saver)
            raise
        else:
            wait(saver)
        finally:
            _close(saver)


def _make_ready(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        finish_removals(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made or written ({error.strerror})") from None


def _orbax(name: str = "save 0 ") -> ocp.AsyncCheckpointer:
    """Each array in a file of its own, as it is: compressing float32 weights saves 8 % of the bytes
    and with Orbax's database of files costs ten times the CPU, beside the next iteration."""
    alone = processes.count() == 1
    among = ocp.options.MultiprocessingOptions(
        active_processes=None if alone else set(range(processes.count())),
        barrier_sync_key_prefix=None if alone else name.replace(" ", "_"),
    )
    # Orbax's own ways to wait learn of a failure in another process when their time is over.
    wait = lambda *, key, timeout_ms: meet(f"{name}{key}")
    ways = {} if alone else {"barrier_sync_fn": wait, "create_directories_asynchronously": False}
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, multiprocessing_options=among
    )
    return ocp.AsyncCheckpointer(
        handler, multiprocessing_options=among, async_options=ocp.options.AsyncOptions(**ways)
    )


def _close(saver: Saver) -> None:
    """Let go of Orbax, and of what its failed saves have left."""
    with contextlib.suppress(Exception):  # of a save whose error has been reported
        saver.orbax.close()
    gc.collect()  # tasks that failed as well would say so whenever they are collected
    if is_writer() and saver.finishing is None:  # not interrupted in `wait`
        with contextlib.suppress(OSError):  # then the next start does it
            finish_removals(saver.path)


def save(
    saver: Saver, step: int, state: TrainState, *, goodness: tuple[str, float] | None = None
) -> None:
    """Start saving the state as it stands after `step` iterations; on return it may be donated.

    With `goodness`, of what and how much, higher being better, the best checkpoint by the same
    measure is kept beside the newest ones.
    A step that is there already is left alone. Raises StorageError if this save cannot start, or
    the one before it failed: then this one has not been started.
    """
    wait(saver)
    saver.number += 1
    began = time.monotonic()
    if together(f"{saver.name}begins", lambda: _begin(saver, step))[0]:
        return
    try:
        if processes.count() > 1:  # whose meetings have names of their own in each save
            saver.orbax = _orbax(saver.name)
        target = saver.path / str(step) / manifest.ITEM
        still = _apart(state, saver.spare)
        saver.spare = None if still is state else still
        saver.orbax.save(target, args=ocp.args.PyTreeSave(still), force=True)
    except Exception as error:
        failure = _not_saved(saver, step, error)
        raise (failure if processes.count() == 1 else TornError(str(failure))) from error
    facts = {**saver.facts, "goodness": _finite(goodness)}
    work = threading.Thread(target=_finish, args=(saver, step, facts, began), name=f"save {step}")
    saver.finishing = work
    work.start()


def _apart(tree: PyTree, spare: PyTree) -> PyTree:
    """The arrays in memory that no step is given: a copy on the CPU, elsewhere `tree` itself.

    Orbax reads the CPU's arrays where they lie, and a step to which they are donated meanwhile
    would wait until it has written them. From a chip it has copied them before it returns.
    `spare`, a copy that nobody reads any longer, is donated: its memory is used again.
    """
    devices = {device for x in jax.tree.leaves(tree) for device in x.sharding.device_set}
    if any(device.platform != "cpu" for device in devices):
        return tree
    return _copy(tree) if spare is None else _copy_into(tree, spare)


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
_copy_into = jax.jit(
    lambda tree, spare: jax.tree.map(jnp.copy, tree), donate_argnames="spare", keep_unused=True
)


def _begin(saver: Saver, step: int) -> bool:
    """Whether the step is there already; else it is marked as unfinished."""
    newest = manifest.latest_step(saver.path) if is_writer() else None
    if newest is not None and newest >= step:
        if newest == step:
            return True
        raise StorageError(
            f"{saver.path}: step {step} comes before the latest checkpoint, step {newest}"
        )
    try:
        faults.point("save_begin")
        if is_writer():
            _mark(saver.path, step)
    except Exception as error:
        raise _not_saved(saver, step, error) from error
    return False


def _mark(path: Path, step: int) -> None:
    marker = manifest.marker_path(path, step)
    if (path / str(step)).exists() and not marker.exists():
        put_aside(path, step)  # a stranger's: neither to be recorded nor removed with ours
    marker.touch()


def wait(saver: Saver) -> None:
    """Until the save under way is on the disk. Raises StorageError if it failed, once."""
    if saver.finishing is not None:
        saver.finishing.join()
        saver.finishing = None
    check(saver)


def check(saver: Saver) -> None:
    """Without waiting: raises StorageError if a save has failed, once."""
    if saver.finishing is not None and saver.finishing.is_alive():
        return
    error, saver.error = saver.error, None
    if error is not None:
        raise error


def settle(saver: Saver, seconds: float) -> None:
    """Give a save under way this long; whether it then counts, `saver.durable` says."""
    if (work := saver.finishing) is not None:
        work.join(seconds)


def _finish(saver: Saver, step: int, facts: Mapping[str, Any], began: float) -> None:
    """In a thread of its own: what makes a save count, once Orbax is done with it."""
    try:
        faults.point("save_mid")
        saver.orbax.wait_until_finished()
        faults.point("save_commit")
        marker = manifest.marker_path(saver.path, step)
        last = lambda: (manifest.write_record(saver.path, step, facts), marker.unlink())
        on_first(f"{saver.name}counts", last)
    except Exception as error:
        spoil(saver.name, one_line(error))  # it has failed in all of them
        saver.error = _not_saved(saver, step, error, lambda: meet(f"no {saver.name}"))
        return
    saver.durable, saver.seconds = step, time.monotonic() - began
    try:
        for old in _superfluous(saver) if is_writer() else ():
            remove(saver.path, old)
    except OSError as error:
        why = f"older checkpoints cannot be removed ({one_line(error)})"
        saver.error = StorageError(f"{saver.path}: {why}")


def _superfluous(saver: Saver) -> list[int]:
    """Steps that are neither among the newest nor the best, by the measure that was used last."""
    best = manifest.best_step(saver.path)
    return [step for step in manifest.steps(saver.path)[: -saver.keep] if step != best]


def _not_saved(
    saver: Saver, step: int, error: Exception, closed: Callable[[], None] = lambda: None
) -> StorageError:
    """The error to report. What the failed save left goes, so that a full disk has room again.

    Orbax goes with it: it would report another error of this save at the next one. Its writers may
    not have ended, so the marker stays until `_close` has another look.
    """
    why = one_line(error)
    with contextlib.suppress(Exception):
        saver.orbax.close()
    saver.orbax = _orbax()
    closed()  # nothing is removed while another process writes there
    try:
        if is_writer():
            remove(saver.path, step)
            manifest.marker_path(saver.path, step).touch()
    except OSError as other:
        why += f"; nor can it be removed: {one_line(other)}"
    return StorageError(f"{saver.path}: step {step} was not saved ({why})")


def _finite(goodness: tuple[str, float] | None) -> list | None:
    return None if goodness is None or not math.isfinite(goodness[1]) else list(goodness)
