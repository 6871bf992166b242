"""Checkpoints of the train state: Orbax, written in the background, whole or not at all.

with open_manager(folder.checkpoints, keep=2) as manager:
    save(manager, step, state)  # the state may be donated to the next step at once
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ppo_jax.errors import CheckpointError, StorageError
from ppo_jax.types import PyTree, TrainState

Manager = ocp.CheckpointManager

ITEM = "state"  # the one item of a checkpoint, and its folder's name


@contextlib.contextmanager
def open_manager(path: Path, keep: int, *, read_only: bool = False) -> Iterator[Manager]:
    """A manager that holds the newest `keep` checkpoints under `path` and is closed in any case.

    Leaving waits for the save under way: a program that ends before it is done loses that
    checkpoint without a word. Raises StorageError if the last step saved is not on the disk then,
    unless another error is on its way, and CheckpointError if there is nothing to read.
    """
    path = Path(path).absolute()
    with _one_line_errors():
        manager = _create(path, ocp.StandardCheckpointHandler(), None if read_only else keep)
        try:
            yield manager
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                _close(manager)
            raise
        last = manager.latest_step()
        try:
            _close(manager)
        except Exception as error:
            raise StorageError(f"{path}: checkpoint not saved ({_one_line(error)})") from error
        if last is not None and last not in ocp.utils.checkpoint_steps(path):
            raise StorageError(f"{path}: checkpoint of step {last} is not there after its save")


def save(manager: Manager, step: int, state: TrainState) -> None:
    """Start saving the state as it stands after `step` iterations; on return it may be donated.

    A step that is there already is left alone. Raises StorageError if this save cannot start or
    the one before it failed.
    """
    latest = manager.latest_step()
    if latest == step:
        return
    if latest is not None and latest > step:
        raise StorageError(
            f"{manager.directory}: step {step} comes before the latest checkpoint, step {latest}"
        )
    try:
        manager.save(step, args=ocp.args.Composite(**{ITEM: ocp.args.StandardSave(state)}))
    except Exception as error:
        raise StorageError(
            f"{manager.directory}: saving failed by step {step} ({_one_line(error)})"
        ) from error


def latest_step(manager: Manager) -> int | None:
    """The newest step saved, None where there is none."""
    return manager.latest_step()


def abstract_like(state: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of a state, PRNG keys included: what `restore` asks for."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def restore(manager: Manager, step: int, abstract_state: TrainState) -> TrainState:
    """The state of `step`, as `abstract_state` (ShapeDtypeStructs with shardings) lays it out.

    Raises CheckpointError if it cannot be read or does not fit.
    """
    arguments = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract_state)})
    _check_fits(manager, step, abstract_state)
    return _read(manager, step, arguments)


def restore_params(path: Path, step: int | None = None) -> PyTree:
    """`state.params` of a checkpoint (the newest unless `step` says) as NumPy arrays.

    Only the parameters are read, and no device layout is asked for, so neither the optimiser's
    moments nor the devices that trained them need to be there. Raises CheckpointError.
    """
    path = Path(path).absolute()
    with _one_line_errors():
        manager = _create(path, ocp.PyTreeCheckpointHandler(), keep=None)
        try:
            step = manager.latest_step() if step is None else step
            if step is None:
                raise CheckpointError(f"{path}: holds no checkpoint")
            wanted = {"params": _saved_tree(manager, step)["params"]}
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
                ),
                partial_restore=True,
            )
            return _read(manager, step, ocp.args.Composite(**{ITEM: arguments}))["params"]
        finally:
            manager.close()


def _create(path: Path, handler: Any, keep: int | None) -> Manager:
    """A manager of `path`, which only reads where `keep` is None."""
    if keep is None and not path.is_dir():
        raise CheckpointError(f"{path}: no such folder of checkpoints")
    options = (
        ocp.CheckpointManagerOptions(read_only=True)
        if keep is None
        else ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    )
    try:
        return ocp.CheckpointManager(path, options=options, item_handlers={ITEM: handler})
    except OSError as error:
        kind = CheckpointError if keep is None else StorageError
        raise kind(f"{path}: checkpoints cannot be opened ({_one_line(error)})") from error


def _close(manager: Manager) -> None:
    try:
        manager.wait_until_finished()
    finally:  # a failed save is reported once, after which closing goes through
        manager.close()


def _saved_tree(manager: Manager, step: int) -> PyTree:
    try:
        return manager.item_metadata(step)[ITEM].tree
    except Exception as error:
        raise _unreadable(manager, step, error) from error


def _read(manager: Manager, step: int, arguments: ocp.args.Composite) -> Any:
    try:
        return manager.restore(step, args=arguments)[ITEM]
    except Exception as error:  # Orbax raises anything, from bare Exception to JSONDecodeError
        raise _unreadable(manager, step, error) from error


def _unreadable(manager: Manager, step: int, error: Exception) -> CheckpointError:
    steps = sorted(manager.all_steps())
    if step not in steps:
        have = ", ".join(map(str, steps)) or "none"
        return CheckpointError(f"{manager.directory}: no checkpoint of step {step}; there: {have}")
    return CheckpointError(
        f"{manager.directory}: step {step} cannot be restored ({_one_line(error)})"
    )


def _check_fits(manager: Manager, step: int, abstract_state: PyTree) -> None:
    """Orbax itself casts another dtype, and gives None for an array where None was saved."""
    saved, wanted = _leaves(_saved_tree(manager, step)), _leaves(abstract_state)
    for name in sorted(saved.keys() | wanted.keys()):
        have, need = saved.get(name), wanted.get(name)
        if have is None or need is None:
            state = "is not in it" if have is None else "is in it but not in this run's state"
            raise CheckpointError(f"{manager.directory}: step {step}: {name} {state}")
        is_key = jax.dtypes.issubdtype(need.dtype, jax.dtypes.prng_key)  # saved as its words
        if not is_key and (have.shape, have.dtype) != (need.shape, need.dtype):
            raise CheckpointError(
                f"{manager.directory}: step {step}: {name} is {have.dtype}{list(have.shape)}, "
                f"this run needs {need.dtype}{list(need.shape)}"
            )


def _leaves(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _one_line(error: Exception, limit: int = 400) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[:limit] + " ..."


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Keep Orbax's own log still: each error it logs, in pages, is raised and reported here."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
