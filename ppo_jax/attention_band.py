"""Attention along a token stream: each block of queries sees the columns just before its end.

Rows stand one after another, so what a token may attend to lies within one row's length before it.
The work is (columns of the stream) x (longest row + a block), whatever the rows: of the static
widths that the longest row may be rounded up to, the program takes the smallest at run time.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.attention import UNSEEN, softcap
from ppo_jax.config import ModelConfig
from ppo_jax.types import Array

SHRINK = (1.0, 0.5)  # the widths, as shares of the most a row can hold
SMALLEST = 48  # below, there is nothing to gain
BLOCKS = 4  # of queries in a width: more of them see less in vain, but copy more keys
MULTIPLE = 8


def widths(width: int) -> tuple[int, ...]:
    """Static widths, ascending, for rows of at most `width` tokens."""
    shares = SHRINK if width > SMALLEST else SHRINK[:1]
    return tuple(sorted({_round_up(round(share * width), MULTIPLE) for share in shares}))


def block_size(width: int) -> int:
    """Queries a block."""
    return max(2 * MULTIPLE, _round_up(-(-width // BLOCKS), MULTIPLE))


def pairs(width: int, columns: int, longest: Array) -> Array:
    """Query-key pairs computed in a stream of so many columns, the longest row given: float32."""
    costs = []
    for w in widths(width):
        block = block_size(w)
        costs.append(_round_up(columns, block) * (_back(w, block) + 1.0) * block)
    return jnp.asarray(costs, jnp.float32)[_which(width, longest)]


def band(
    config: ModelConfig,
    width: int,
    longest: Array,
    row_ZN: Array,
    q_ZNHK: Array,
    k_ZNGK: Array,
    v_ZNGK: Array,
    local: bool | Array,
) -> Array:
    """Causal attention [Z, N, H, K] within each row of the streams.

    `width` bounds the rows, `longest` (traced) is the longest row's length. The backward pass
    computes the scores again: nothing of size [N, width] is kept.
    """
    local = jnp.asarray(local)
    return _band(config, width, _which(width, longest), row_ZN, local, q_ZNHK, k_ZNGK, v_ZNGK)


def _which(width: int, longest: Array) -> Array:
    return jnp.searchsorted(jnp.asarray(widths(width), jnp.int32), longest.astype(jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _band(config, width, which, row_ZN, local, *qkv):
    return lax.switch(which, _branches(config, width, row_ZN, local), *qkv)


def _forward(config, width, which, row_ZN, local, *qkv):
    return _band(config, width, which, row_ZN, local, *qkv), (which, row_ZN, local, qkv)


def _backward(config, width, saved, grad_ZNHK):
    which, row_ZN, local, qkv = saved
    pulls = [
        lambda grad, *qkv, branch=branch: jax.vjp(branch, *qkv)[1](grad)
        for branch in _branches(config, width, row_ZN, local)
    ]
    return None, None, None, *lax.switch(which, pulls, grad_ZNHK, *qkv)


_band.defvjp(_forward, _backward)


def _branches(config, width, row_ZN, local):
    return [functools.partial(_attend, config, w, row_ZN, local) for w in widths(width)]


def _attend(config: ModelConfig, width: int, row_ZN, local, q_ZNHK, k_ZNGK, v_ZNGK) -> Array:
    Z, N, H, K = q_ZNHK.shape
    G, block = k_ZNGK.shape[2], block_size(width)
    back = _back(width, block)
    room = -N % block
    q_ZCQGRK = _pad(q_ZNHK, 0, room).reshape(Z, -1, block, G, H // G, K)
    seen = lambda x_ZN, *fill: _windows(_pad(x_ZN, back * block, room, *fill), back, block)
    k_ZCSGK, v_ZCSGK = seen(k_ZNGK), seen(v_ZNGK)
    row_ZCQ = _pad(row_ZN, 0, room, -1).reshape(Z, -1, block)
    row_ZCS = seen(row_ZN, -2)

    # Within a row, columns tell the distance, and those of a block lie the same way in all blocks.
    distance_QS = jnp.arange(block)[:, None] + back * block - jnp.arange((back + 1) * block)[None]
    causal_QS = distance_QS >= 0
    if config.window is not None:
        causal_QS &= (distance_QS < config.window) | ~local
    visible_ZCQS = (row_ZCQ[..., None] == row_ZCS[:, :, None]) & causal_QS[None, None]

    scores_ZCGRQS = jnp.einsum(
        "zcqgrk,zcsgk->zcgrqs", q_ZCQGRK, k_ZCSGK, preferred_element_type=jnp.float32
    )
    scores_ZCGRQS *= K**-0.5 if config.attention_scale is None else config.attention_scale
    scores_ZCGRQS = softcap(scores_ZCGRQS, config.attention_softcap)
    scores_ZCGRQS = jnp.where(visible_ZCQS[:, :, None, None], scores_ZCGRQS, UNSEEN)
    weights_ZCGRQS = jax.nn.softmax(scores_ZCGRQS, axis=-1).astype(v_ZCSGK.dtype)
    out_ZCQGRK = jnp.einsum("zcgrqs,zcsgk->zcqgrk", weights_ZCGRQS, v_ZCSGK)
    return out_ZCQGRK.reshape(Z, -1, H, K)[:, :N]


def _back(width: int, block: int) -> int:
    """Blocks before its own that a block of queries sees."""
    return -(-(width - 1) // block)


def _windows(x_ZN: Array, back: int, block: int) -> Array:
    """[Z, C, (back + 1) block, ...]: each block with the ones before it."""
    Z, N = x_ZN.shape[:2]
    count = N // block - back
    shifted = [
        x_ZN[:, i * block : (i + count) * block].reshape(Z, count, block, *x_ZN.shape[2:])
        for i in range(back + 1)
    ]
    return jnp.concatenate(shifted, axis=2)


def _pad(x_ZN: Array, front: int, end: int, value=0) -> Array:
    space = ((0, 0), (front, end), *((0, 0),) * (x_ZN.ndim - 2))
    return jnp.pad(x_ZN, space, constant_values=value)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
