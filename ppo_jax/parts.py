"""A minibatch in parts: how rows too many for one pass are taken apart and put together again.

By rows: parts of equally many rows, at full width. By tokens: rows are sorted by their length and
dealt to as few parts as their tokens need (and their number, where kernels read padded rows), at
most as many as of rows; each part runs at the smallest of a few static sizes that holds its tokens.
The program has every size once, and takes at run time as many parts, of the sizes, that it needs:
what is short costs little.
"""

import functools
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
ROWS = 2  # times an even share of the rows: the most in a part where kernels read padded rows


class ByTokens(NamedTuple):
    """Static recipe of parts by tokens."""

    shards: int  # devices: each holds an equal share of the rows, and of every part
    most: int  # parts
    sizes: tuple[int, ...]  # tokens of a part on a device, ascending; the largest holds any part
    rows: int  # of a part on a device, at most: all of them, or fewer and then more parts


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


def most_rows(rows: int, most: int, *, padded: bool) -> int:
    """Rows that one of at most `most` parts of `rows` rows may have. Where a kernel reads them as
    `padded` rows, many short ones would take more room than a few long ones."""
    return min(rows, ROWS * -(-rows // most)) if padded else rows


def by_tokens(
    shards: int, rows: int, width: int, most: int, count: int, *, padded: bool
) -> ByTokens:
    """Of `rows` rows on each of `shards` devices, of at most `width` tokens each, in at most `most`
    parts of `count` sizes."""
    sizes = token_sizes(rows, width, most, count)
    return ByTokens(shards, most, sizes, most_rows(rows, most, padded=padded))


def plan(recipe: ByTokens, tokens_B: Array) -> Plan:
    """Sort, deal to the shards in turn, and choose the number of parts."""
    Z = recipe.shards
    order_B = jnp.argsort(-tokens_B, stable=True).reshape(-1, Z).T.reshape(-1)
    tokens_ZR = tokens_B[order_B].reshape(Z, -1)
    loads_CPZ = jnp.einsum("cpr,zr->cpz", _members(recipe.most, tokens_ZR.shape[1]), tokens_ZR)
    fits_C = loads_CPZ.max(axis=(1, 2)) <= recipe.sizes[-1]
    least = -(-tokens_ZR.shape[1] // recipe.rows)
    return Plan(order_B, jnp.maximum(jnp.argmax(fits_C) + 1, least), tokens_ZR.reshape(-1))


def _members(most: int, rows: int) -> np.ndarray:
    """Whether row r is in part p where there are c + 1 parts, every (c + 1)-th row one: [C, P, R]
    of 0 and 1, int32."""
    counts_C11 = np.arange(1, most + 1)[:, None, None]
    return (np.arange(rows) % counts_C11 == np.arange(most)[:, None]).astype(np.int32)


def run_part(recipe: ByTokens, plan: Plan, index: Array, rows: PyTree, function: Callable):
    """`function(part, present_B, size)` of part `index` of rows in the plan's order: rows with all
    of the part among them, which those are, and the static number of tokens that holds them on
    every shard. All shards take the same size."""
    place_N = _places(recipe, plan, index)
    mine_N = (place_N % plan.count == index) & (place_N < _rows_a_shard(recipe, plan))
    part, tokens_B = _take(recipe, plan, (rows, plan.tokens_B), place_N)
    load_ZN = jnp.where(mine_N, tokens_B.reshape(recipe.shards, -1), 0)
    run = lambda size: function(part, (load_ZN > 0).reshape(-1), size)
    if len(recipe.sizes) == 1:
        return run(recipe.sizes[0])
    which = jnp.searchsorted(jnp.asarray(recipe.sizes), load_ZN.sum(axis=1).max())
    return lax.switch(which, [functools.partial(run, size) for size in recipe.sizes])


def _places(recipe: ByTokens, plan: Plan, index: Array) -> Array:
    """Places of the rows that a part reads, on each shard alike: all of them, or every `count`-th,
    and then the last may lie past the end."""
    if _reads_all(recipe, plan):
        return jnp.arange(_rows_a_shard(recipe, plan))
    return index + plan.count * jnp.arange(recipe.rows)


def _places_back(recipe: ByTokens, plan: Plan, index: Array) -> Array:
    """Where in a part each row of a shard is; past the end where it is not."""
    row_R = jnp.arange(_rows_a_shard(recipe, plan))
    return jnp.where(row_R % plan.count == index, row_R // plan.count, recipe.rows)


def _rows_a_shard(recipe: ByTokens, plan: Plan) -> int:
    return plan.tokens_B.shape[0] // recipe.shards


def _reads_all(recipe: ByTokens, plan: Plan) -> bool:
    return recipe.rows >= _rows_a_shard(recipe, plan)


def _take(recipe: ByTokens, plan: Plan, rows: PyTree, place_N: Array) -> PyTree:
    """Rows of every shard by their place in it, zeros from past the end; all as they are where a
    part reads them all."""
    if _reads_all(recipe, plan):
        return rows

    def take(x_B):
        x_ZR = x_B.reshape(recipe.shards, -1, *x_B.shape[1:])
        x_ZN = x_ZR.at[:, place_N].get(mode="fill", fill_value=0)
        return x_ZN.reshape(-1, *x_B.shape[1:])

    return jax.tree.map(take, rows)


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
    chosen = plan(recipe, tokens_of(rows))
    rows = jax.tree.map(lambda x: x[chosen.order_B], rows)
    return _sum(recipe, chosen, lambda i: run_part(recipe, chosen, i, rows, function), add)


def map_over_tokens(recipe: ByTokens, tokens_B: Array, rows: PyTree, function: Callable) -> PyTree:
    """Results [B, ...] of `function(rows, present_B, size)`, which gives 0 for rows that are not
    present, in the order of `rows`."""
    chosen = plan(recipe, tokens_B)
    rows = jax.tree.map(lambda x: x[chosen.order_B], rows)
    add = lambda sums, more: jax.tree.map(jnp.add, sums, more)

    def one(index):
        results = run_part(recipe, chosen, index, rows, function)
        return _take(recipe, chosen, results, _places_back(recipe, chosen, index))

    results = _sum(recipe, chosen, one, add)
    back_B = jnp.argsort(chosen.order_B)
    return jax.tree.map(lambda x: x[back_B], results)


def _sum(recipe: ByTokens, chosen: Plan, one: Callable, add: Callable) -> PyTree:
    if recipe.most == 1:
        return one(jnp.int32(0))
    return lax.fori_loop(0, chosen.count, lambda i, sums: add(sums, one(i)), _zeros(one, 0))


def _zeros(function, *arguments) -> PyTree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *arguments))
