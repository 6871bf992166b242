"""Checkpoints read back: a state as this run lays it out, or the parameters alone."""

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ppo_jax import faults, manifest
from ppo_jax.errors import CheckpointError
from ppo_jax.storage import as_path
from ppo_jax.text import one_line
from ppo_jax.types import PyTree, TrainState

Handler = ocp.StandardCheckpointHandler | ocp.PyTreeCheckpointHandler


class Unreadable(CheckpointError):
    """What was written cannot be read; not that it is of another run or model."""


def abstract_like(state: PyTree) -> PyTree:
    """Shapes, dtypes and shardings of a state, PRNG keys included: what `restore` asks for."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def restore(path: Path, step: int, abstract_state: TrainState) -> TrainState:
    """The state of `step`, as `abstract_state` (ShapeDtypeStructs with shardings) lays it out.

    Raises CheckpointError if it does not fit, or cannot be read, without a wait for other
    processes; whether it is what was written, `manifest.verify` says.
    """
    path = as_path(path).absolute()
    with quiet_orbax(), contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
        _check_fits(path, step, _saved_tree(reader, path, step), abstract_state)
        return _read(reader, path, step, ocp.args.StandardRestore(abstract_state))


def restore_params(path: Path, step: int | None = None) -> PyTree:
    """`state.params` of a checkpoint: see `restore_fields`."""
    return restore_fields(path, step, "params")["params"]


def restore_fields(path: Path, step: int | None, *names: str) -> dict[str, PyTree]:
    """Fields of a checkpoint's state (of the newest unless `step` says) as NumPy arrays, those
    of a tuple by name.

    Nothing else is read, and no device layout is asked for, so neither the optimiser's moments nor
    the devices that trained them need to be there. Raises CheckpointError.
    """
    path = as_path(path).absolute()
    have = manifest.steps(path)
    if not have or (step is not None and step not in have):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{path}: no {wanted}; there: {', '.join(map(str, have)) or 'none'}")
    step = have[-1] if step is None else step
    manifest.verify(path, step)
    with quiet_orbax(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        saved = _saved_tree(reader, path, step)
        wanted = {name: saved[name] for name in names}
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
            partial_restore=True,
        )
        return _read(reader, path, step, arguments)


# The handlers alone: Orbax's Checkpointer would wait for the other processes after it has read, and
# for ever where one of them could not.
def _saved_tree(reader: Handler, path: Path, step: int) -> PyTree:
    try:
        return reader.metadata(_item(path, step)).tree
    except Exception as error:
        raise _unreadable(path, step, error) from error


def _read(reader: Handler, path: Path, step: int, arguments: Any) -> Any:
    try:
        faults.point("restore")
        return reader.restore(_item(path, step), args=arguments)
    except Exception as error:  # Orbax raises anything, from bare Exception to JSONDecodeError
        raise _unreadable(path, step, error) from error


def _item(path: Path, step: int) -> epath.Path:
    return epath.Path(path / str(step) / manifest.ITEM)


def _unreadable(path: Path, step: int, error: Exception) -> Unreadable:
    return Unreadable(f"{path}: step {step} cannot be restored ({one_line(error)})")


def _check_fits(path: Path, step: int, saved_tree: PyTree, abstract_state: PyTree) -> None:
    """Orbax itself casts another dtype, and gives None for an array where None was saved."""
    saved, wanted = _leaves(saved_tree), _leaves(abstract_state)
    for name in sorted(saved.keys() | wanted.keys()):
        have, need = saved.get(name), wanted.get(name)
        if have is None or need is None:
            state = "is not in it" if have is None else "is in it but not in this run's state"
            raise CheckpointError(f"{path}: step {step}: {name} {state}")
        is_key = jnp.issubdtype(need.dtype, jax.dtypes.prng_key)  # saved as its words
        if not is_key and (have.shape, have.dtype) != (need.shape, need.dtype):
            raise CheckpointError(
                f"{path}: step {step}: {name} is {have.dtype}{list(have.shape)}, "
                f"this run needs {need.dtype}{list(need.shape)}"
            )


def _leaves(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keep Orbax still: each error that it tells in pages is raised too, and reported in a line."""
    _drop_late_errors()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@functools.cache
def _drop_late_errors() -> None:
    """When one read or write of many fails, Orbax closes the event loop that the others still tell
    of their end, whenever that comes, or never begins them: Python would say so of each."""
    warnings.filterwarnings("ignore", r"coroutine '.*write_fragment' was never awaited")
    hook = sys.unraisablehook
    late = lambda it: it.object is None and str(it.exc_value) == "Event loop is closed"
    sys.unraisablehook = lambda it: None if late(it) else hook(it)
