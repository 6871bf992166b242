"""A function over chunks of columns, only as many as hold anything, forwards and backwards."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.types import Array, PyTree


def by_chunks(
    function: Callable[[PyTree, PyTree], PyTree],
    chunk: int,
    shared: PyTree,
    columns: PyTree,
    count: Array,
) -> PyTree:
    """`function(shared, columns)` over arrays [Z, M, ...], `chunk` columns at a time.

    Columns from `count` (traced) on hold nothing: chunks of them alone are not run, their results
    are 0. The results are [Z, M, ...] too. Nothing within a chunk is kept for the backward pass,
    which runs it again. Where one chunk holds all, the function is called plainly.
    """
    width = jax.tree.leaves(columns)[0].shape[1]
    if chunk >= width:
        return function(shared, columns)
    room = -width % chunk
    pad = lambda x: jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2)))
    results = _run(function, chunk, shared, jax.tree.map(pad, columns), count)
    return jax.tree.map(lambda x: x[:, :width], results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(function, chunk: int, shared, columns, count):
    at = functools.partial(_chunk_of, columns, chunk)
    width = jax.tree.leaves(columns)[0].shape[1]
    shapes = jax.eval_shape(function, shared, at(0))
    empty = jax.tree.map(lambda s: jnp.zeros((s.shape[0], width, *s.shape[2:]), s.dtype), shapes)
    put = lambda i, results: _put(results, function(shared, at(i)), i * chunk)
    return lax.fori_loop(0, _chunks(count, chunk), put, empty)


def _forward(function, chunk, shared, columns, count):
    return _run(function, chunk, shared, columns, count), (shared, columns, count)


def _backward(function, chunk, saved, grads):
    shared, columns, count = saved
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)

    def add(i, sums):
        d_shared, d_columns = sums
        part = _chunk_of(columns, chunk, i)
        run = lambda shared, moving: function(shared, _merge(moving, part))
        moving = jax.tree.map(lambda x: x if floats(x) else None, part)
        _, pull = jax.vjp(run, shared, moving)
        from_shared, from_columns = pull(_chunk_of(grads, chunk, i))
        d_shared = jax.tree.map(jnp.add, d_shared, from_shared)
        return d_shared, _put(d_columns, from_columns, i * chunk)

    moving = jax.tree.map(lambda x: x if floats(x) else None, columns)
    zeros = jax.tree.map(jnp.zeros_like, (shared, moving))
    d_shared, d_columns = lax.fori_loop(0, _chunks(count, chunk), add, zeros)
    return d_shared, _merge(d_columns, jax.tree.map(lambda x: None, columns)), None


_run.defvjp(_forward, _backward)


def _chunks(count: Array, chunk: int) -> Array:
    return (count + chunk - 1) // chunk


def _chunk_of(columns: PyTree, chunk: int, i) -> PyTree:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1), columns)


def _put(results: PyTree, part: PyTree, start) -> PyTree:
    put = lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new, start, axis=1)
    return jax.tree.map(put, results, part)


def _merge(some: PyTree, rest: PyTree) -> PyTree:
    """The leaves of `some`, and where it has None those of `rest`."""
    return jax.tree.map(lambda a, b: b if a is None else a, some, rest, is_leaf=lambda x: x is None)
