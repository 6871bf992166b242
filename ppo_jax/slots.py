"""Which slot decodes which row: a queue of rows, refills, and fewer slots as rows end.

The decode loop runs over W slots at once. While rows wait in the queue, slots whose row has ended
take the next ones; when none waits, the rows that still go on are gathered into fewer slots and a
smaller loop goes on with them. What a row draws depends on none of this.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ppo_jax import kv_cache
from ppo_jax.types import Array, PyTree

REFILL = 8  # a refill waits until one slot in so many is free: few prefills, few idle slots


class Slots(NamedTuple):
    """What each slot decodes."""

    row_W: Array  # int32, of the batch
    t_W: Array  # int32, tokens of the response drawn so far
    token_W: Array  # int32, the one drawn last
    live_W: Array  # bool; a slot without a live row draws what nobody writes down


class State(NamedTuple):
    """What the decode loops carry."""

    slots: Slots
    caches: list[kv_cache.Cache]
    record: PyTree
    queued: Array  # int32, the first row that waits; all from there on do
    steps: Array  # int32, slots x steps run


class Claim(NamedTuple):
    """Rows R taken from the queue and the free slots they go to."""

    row_R: Array
    slot_R: Array  # the number of slots, which no slot has, where nothing is claimed
    live_R: Array  # whether there is such a row


def empty(count: int) -> Slots:
    zeros_W = jnp.zeros((count,), jnp.int32)
    return Slots(zeros_W, zeros_W, zeros_W, jnp.zeros((count,), bool))


def ladder(slots: int, compactions: int) -> tuple[int, ...]:
    """Slots of each loop: every one has half those of the one before it."""
    counts = [slots]
    while len(counts) <= compactions and counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return tuple(counts)


def claim(state: State, rows: int, count: int) -> Claim:
    """The next `count` of `rows` rows, for the first free slots."""
    row_R = state.queued + jnp.arange(count)
    live_R = row_R < rows
    W = state.slots.live_W.shape[0]
    free_R = jnp.nonzero(~state.slots.live_W, size=count, fill_value=W)[0]
    return Claim(jnp.minimum(row_R, rows - 1), jnp.where(live_R, free_R, W), live_R)


def seat(slots: Slots, claimed: Claim, token_R: Array, live_R: Array) -> Slots:
    """The slots with the claimed rows in their places, one token drawn of each."""
    new = Slots(claimed.row_R, jnp.ones_like(claimed.row_R), token_R, live_R)
    put = lambda old_W, new_R: old_W.at[claimed.slot_R].set(new_R, mode="drop")
    return Slots(*map(put, slots, new))


def run(
    state: State,
    rows: int,
    compactions: int,
    fill: Callable[[State, int], State],
    step: Callable[[State], State],
    most: Callable[[Array], Array],
) -> State:
    """Decode `rows` rows to their ends.

    `fill(state, count)` prefills the next `count` rows into free slots, `step` draws one token for
    every slot. Without a queue (as many slots as rows) there is nothing to refill in the loop.
    `most(x)` is the largest `x` of all runs that share the loops, in which there is no queue.
    """
    W = state.slots.live_W.shape[0]
    queue = W < rows
    count = -(-W // REFILL)
    state = state if queue else fill(state, rows)

    def body(state: State) -> State:
        if queue:
            # A loop, not a branch: it works on the caches in place.
            state = lax.while_loop(
                lambda s: _refillable(s, rows, count), lambda s: fill(s, count), state
            )
        return step(state)

    counts = ladder(W, compactions)
    for fits in (*counts[1:], 0):
        unfinished = lambda s, fits=fits: (most(s.slots.live_W.sum()) > fits) | (s.queued < rows)
        state = lax.while_loop(unfinished, body, state)
        queue = False
        state = _compact(state, fits) if fits else state
    return state


def _refillable(state: State, rows: int, count: int) -> Array:
    """Rows wait, and as many slots are free as a refill fills."""
    left = rows - state.queued
    free = jnp.sum(~state.slots.live_W)
    return (left > 0) & (free >= jnp.minimum(count, left))


def _compact(state: State, count: int) -> State:
    """The live rows, at most `count`, in as many slots."""
    slot_N = jnp.argsort(~state.slots.live_W, stable=True)[:count]
    return state._replace(
        slots=Slots(*(x_W[slot_N] for x_W in state.slots)),
        caches=kv_cache.take_slots(state.caches, slot_N),
    )
