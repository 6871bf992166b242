"""A minibatch in parts: how rows too many for one pass are taken apart and put together again.

By rows: parts of equally many rows, at full width. By tokens: rows are sorted by their length and
dealt to as few parts as their tokens need, at most as many as of rows; each part runs at the
smallest of a few static sizes that holds its tokens. The program has every size once, and takes at
run time as many parts, of the sizes, that it needs: what is short costs little.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppo_jax.microbatch import deal
from ppo_jax.types import Array, PyTree

SHRINK = 0.85  # from one size to the next smaller one
MULTIPLE = 16  # sizes are multiples of it


class ByTokens(NamedTuple):
    """Static recipe of parts by tokens."""

    shards: int  # devices: each holds an equal share of the rows, and of every part
    most: int  # parts
    sizes: tuple[int, ...]  # tokens of a part on a device, ascending; the largest holds any part


class Plan(NamedTuple):
    """Parts of some rows; traced."""

    order_B: Array  # rows as they are dealt: shard by shard, the longest first
    count: Array  # parts
    tokens_B: Array  # of the rows in that order


def token_sizes(rows: int, width: int, most: int, count: int) -> tuple[int, ...]:
    """`count` static sizes for `rows` rows of at most `width` tokens in at most `most` parts.

    Sizes fall by a constant factor, so that a part wastes at most that share of its tokens.
    """
    largest = -(-rows // most) * width
    up = lambda n: -(-n // MULTIPLE) * MULTIPLE
    sizes = {min(largest, up(round(largest * SHRINK**i))) for i in range(count)}
    return tuple(sorted(sizes))


def plan(recipe: ByTokens, tokens_B: Array) -> Plan:
    """Sort, deal to the shards in turn, and choose the number of parts."""
    Z = recipe.shards
    order_B = jnp.argsort(-tokens_B, stable=True).reshape(-1, Z).T.reshape(-1)
    tokens_ZR = tokens_B[order_B].reshape(Z, -1)
    loads_CPZ = jnp.einsum("cpr,zr->cpz", _members(recipe.most, tokens_ZR.shape[1]), tokens_ZR)
    fits_C = loads_CPZ.max(axis=(1, 2)) <= recipe.sizes[-1]
    return Plan(order_B, jnp.argmax(fits_C) + 1, tokens_ZR.reshape(-1))


def _members(most: int, rows: int) -> np.ndarray:
    """Whether row r is in part p where there are c + 1 parts, every (c + 1)-th row one: [C, P, R]
    of 0 and 1, int32."""
    counts_C11 = np.arange(1, most + 1)[:, None, None]
    return (np.arange(rows) % counts_C11 == np.arange(most)[:, None]).astype(np.int32)


def run_part(recipe: ByTokens, plan: Plan, index: Array, function: Callable[[Array, int], PyTree]):
    """`function(present_B, size)` of part `index`: which rows of the plan's order it has, and the
    static number of tokens that holds them on every shard. All shards take the same size."""
    B = plan.tokens_B.shape[0]
    slot_B = jnp.arange(B) % (B // recipe.shards)  # of the row within its shard
    present_B = (slot_B % plan.count == index) & (plan.tokens_B > 0)
    load_Z = jnp.where(present_B, plan.tokens_B, 0).reshape(recipe.shards, -1).sum(axis=1)
    if len(recipe.sizes) == 1:
        return function(present_B, recipe.sizes[0])
    branches = [lambda size=size: function(present_B, size) for size in recipe.sizes]
    which = jnp.searchsorted(jnp.asarray(recipe.sizes), load_Z.max())
    return lax.switch(which, branches)


# (rows, function, add) -> the sum, by `add`, of `function(rows, present_B, size)` over their parts
SumParts = Callable[[PyTree, Callable, Callable], PyTree]


def sum_over_rows(count: int, rows: PyTree, function: Callable, add: Callable) -> PyTree:
    """Sum of `function(part)` over `count` parts of equally many rows."""
    if count == 1:
        return function(rows)
    parts = deal(rows, count)
    zeros = _zeros(function, jax.tree.map(lambda x: x[0], parts))
    return lax.scan(lambda sums, part: (add(sums, function(part)), None), zeros, parts)[0]


def sum_over_tokens(
    recipe: ByTokens, tokens_of: Callable, rows: PyTree, function: Callable, add: Callable
) -> PyTree:
    """Sum of `function(rows, present_B, size)` over parts by `tokens_of(rows)` [B]."""
    return _sum(recipe, plan(recipe, tokens_of(rows)), rows, function, add)


def map_over_tokens(recipe: ByTokens, tokens_B: Array, rows: PyTree, function: Callable) -> PyTree:
    """Results [B, ...] of `function(rows, present_B, size)`, which gives 0 for rows that are not
    present, in the order of `rows`."""
    chosen = plan(recipe, tokens_B)
    add = lambda sums, more: jax.tree.map(jnp.add, sums, more)
    results = _sum(recipe, chosen, rows, function, add)
    back_B = jnp.argsort(chosen.order_B)
    return jax.tree.map(lambda x: x[back_B], results)


def _sum(recipe: ByTokens, chosen: Plan, rows: PyTree, function, add) -> PyTree:
    rows = jax.tree.map(lambda x: x[chosen.order_B], rows)
    one = lambda i: run_part(recipe, chosen, i, lambda *part: function(rows, *part))
    if recipe.most == 1:
        return one(jnp.int32(0))
    return lax.fori_loop(0, chosen.count, lambda i, sums: add(sums, one(i)), _zeros(one, 0))


def _zeros(function, *arguments) -> PyTree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *arguments))
