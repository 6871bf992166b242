"""Rows in parts: how a batch too large for one pass is taken apart and put together again."""

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.types import PyTree


def deal(rows: PyTree, count: int) -> PyTree:
    """Rows [B, ...] as [count, B / count, ...]: part i takes rows i, count + i, 2 count + i …, so
    that each part holds rows of every device."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), rows)


def by_microbatch(function, rows: PyTree, count: int) -> PyTree:
    """`function` over `count` parts of the rows, one after another; the results in row order.

    Part i takes rows i, count + i, 2 count + i …, so each holds rows of every device.
    """
    if count == 1:
        return function(rows)
    results = lax.map(function, deal(rows, count))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), results)
