"""The keys and values of what has been read so far, of every slot that decodes.

A layer's cache is a list of blocks of columns, (k, v) [W, G, S_i, K] each, of W slots: as many
leading blocks are read as hold the columns written so far. Blocks are arrays of their own because
reading a slice of a larger one copies it. Heads come before columns: the product of a query with
its keys then reads memory in order.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppo_jax.config import ModelConfig
from ppo_jax.types import Array
from ppo_jax.weight_sharding import on_own_heads

ONE_BLOCK = 128  # columns up to which splitting them saves less than the branches cost
SMALLEST = 32  # columns a response adds to a block, at least

Cache = list[tuple[Array, Array]]  # of a layer, its blocks


def block_widths(prompt: int, new: int, blocks: int) -> tuple[int, ...]:
    """Columns of each block of `prompt` + `new`: the first holds the prompt and the first tokens,
    each further one doubles the room for the response. The columns are in `blocks` blocks at most.
    """
    ends, room = [prompt + new], new
    while prompt + new > ONE_BLOCK and len(ends) < blocks and room >= 2 * SMALLEST:
        room = -(-room // 2)
        ends.insert(0, prompt + room)
    return tuple(end - start for start, end in zip((0, *ends), ends, strict=False))


def empty(
    config: ModelConfig, dtype, slots: int, widths: tuple[int, ...], mesh: Mesh | None = None
) -> list[Cache]:
    """Caches of all layers, zeros: what nobody has written is masked, but must be finite."""
    block = lambda width: jnp.zeros((slots, config.num_kv_heads, width, config.head_dim), dtype)
    caches = [[(block(w), block(w)) for w in widths] for _ in range(config.num_layers)]
    return on_own_heads(mesh, caches, axis=1)


def write_token(cache: Cache, k_W1GK: Array, v_W1GK: Array, column_W: Array) -> Cache:
    """A layer's cache with one token a slot written, each at its own column."""
    slot_W, written, start = jnp.arange(column_W.shape[0]), [], 0
    for block in cache:
        width = block[0].shape[2]
        # Columns of the other blocks are dropped; a negative index would count from the end.
        inside_W = jnp.where(column_W < start, width, column_W - start)
        put = lambda old, new, at_W=inside_W: old.at[slot_W, :, at_W].set(
            new[:, 0], mode="drop", unique_indices=True
        )
        written.append(tuple(map(put, block, (k_W1GK, v_W1GK))))
        start += width
    return written


def write_prompts(caches: list[Cache], prompts: list[tuple[Array, Array]], slot_R: Array):
    """Caches with the prompts' (k, v) [R, G, P, K] of each layer in these slots; a slot that does
    not exist is dropped. As many prompts as slots go to all of them, in order."""
    W, R = caches[0][0][0].shape[0], slot_R.shape[0]
    source_W = jnp.full((W,), -1, jnp.int32).at[slot_R].set(jnp.arange(R), mode="drop")
    given_W111 = (source_W >= 0)[:, None, None, None]

    def put(old: Array, new: Array) -> Array:
        # Each slot looks for its prompt: a scatter of rows is a loop of small copies on a TPU.
        P = new.shape[2]
        if R < W:
            new = jnp.where(given_W111, new[source_W], old[:, :, :P])
        return old.at[:, :, :P].set(new)

    return [
        [tuple(map(put, cache[0], prompt)), *cache[1:]]
        for cache, prompt in zip(caches, prompts, strict=True)
    ]


def blocks_reached(caches: list[Cache], column: Array) -> Array:
    """Number of leading blocks, less one, that hold the columns up to this one."""
    starts, start = [], 0
    for k_WGSK, _ in caches[0]:
        starts.append(start)
        start += k_WGSK.shape[2]
    return jnp.sum(jnp.asarray(starts[1:], jnp.int32) <= column, dtype=jnp.int32)


def take_slots(caches: list[Cache], slot_N: Array) -> list[Cache]:
    """The caches of these slots, in arrays of their own."""
    return jax.tree.map(lambda x: x[slot_N], caches)
