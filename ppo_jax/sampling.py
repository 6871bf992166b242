"""From logits to a token: suppression of stop ids, top-k/top-p, inverse-CDF sampling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.ranges import MAX_KEPT
from ppo_jax.types import Array

BLOCK = 256  # ids a block of the two-level cumulative sum
NEVER = -1e30  # a logit that is never sampled; finite, so that differences of two stay finite


class Draw(NamedTuple):
    ids_B: Array
    logprobs_B: Array  # of the distribution drawn from
    kept_BK: Array | None  # the ids it was over, -1 fills; None: all


def suppress(logits: Array, ids: tuple[int, ...], where: Array) -> Array:
    """Logits [..., V] with `ids` made impossible where the boolean array (of shape [...]) holds."""
    hit_V = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(ids, jnp.int32)].set(True)
    hit = where[..., None] & jnp.broadcast_to(hit_V, logits.shape)
    return jnp.where(hit, NEVER, logits)


def uniforms(row_keys_B: Array, t_B: Array) -> Array:
    """One uniform number in [0, 1) a row, a function of the row's key and its position alone."""
    return jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t)))(row_keys_B, t_B)


def draw(logits_BV: Array, u_B: Array, *, top_k: int | None, top_p: float | None) -> Draw:
    """Sample one id a row by inverting the cumulative distribution at `u_B`.

    `logits_BV` are float32, already divided by the temperature. top-p keeps the smallest set of
    most likely ids whose mass reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751), taken
    after top-k as Hugging Face does, and from the `MAX_KEPT` most likely ids where top_k is None.
    """
    if top_k is None and top_p is None:
        ids_B = invert_cdf(logits_BV, u_B)
        chosen_B = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=1)[:, 0]
        return Draw(ids_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1), None)

    count = min(MAX_KEPT if top_k is None else top_k, logits_BV.shape[-1])
    top_BK, ids_BK = jax.lax.top_k(logits_BV, count)
    keep_BK = top_BK > NEVER / 2
    if top_p is not None:
        whole_BV = logits_BV if top_k is None else top_BK
        probs_BK = jnp.exp(top_BK - jax.nn.logsumexp(whole_BV, axis=-1, keepdims=True))
        keep_BK &= jnp.cumsum(probs_BK, axis=-1) - probs_BK < top_p  # the first is always kept
    top_BK = jnp.where(keep_BK, top_BK, NEVER)
    pick_B = invert_cdf(top_BK, u_B)[:, None]
    logprobs_BK = jax.nn.log_softmax(top_BK, axis=-1)
    return Draw(
        jnp.take_along_axis(ids_BK, pick_B, axis=1)[:, 0],
        jnp.take_along_axis(logprobs_BK, pick_B, axis=1)[:, 0],
        jnp.where(keep_BK, ids_BK, -1),
    )


def greedy(logits_BV: Array) -> Draw:
    """The most likely id, with its log-probability at temperature 1."""
    ids_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    top_B = jnp.max(logits_BV, axis=-1)
    return Draw(ids_B, top_B - jax.nn.logsumexp(logits_BV, axis=-1), None)


def invert_cdf(logits_BV: Array, u_B: Array) -> Array:
    """The id whose slice of the cumulative distribution holds `u_B`, int32.

    Sums of blocks first, then within the chosen block: one exponential an id and short sums,
    against two logarithms and a random number an id for Gumbel noise. Ids of probability 0
    (below float32's exp) are never chosen, whatever the rounding of the sums.
    """
    B, V = logits_BV.shape
    size = min(BLOCK, V)
    weights_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    padded = jnp.pad(weights_BV, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    sums = padded.sum(-1)
    ends = jnp.cumsum(sums, axis=-1)
    target_B = u_B * ends[:, -1]
    block_B = _slice_of(sums, ends, target_B)
    before_B = jnp.where(
        block_B > 0,
        jnp.take_along_axis(ends, jnp.maximum(block_B - 1, 0)[:, None], axis=1)[:, 0],
        0.0,
    )
    within = jnp.take_along_axis(padded, block_B[:, None, None], axis=1)[:, 0]
    return block_B * size + _slice_of(within, jnp.cumsum(within, axis=-1), target_B - before_B)


def _slice_of(widths_BN: Array, ends_BN: Array, target_B: Array) -> Array:
    """First slice with any width whose end passes the target, else the last one with any width.

    The widths are asked, not the ends: sums in parallel may put two ends apart by a rounding where
    nothing lies between them.
    """
    index_N = jnp.arange(widths_BN.shape[-1], dtype=jnp.int32)
    wide_BN = widths_BN > 0
    last_B = jnp.max(jnp.where(wide_BN, index_N[None], 0), axis=-1)
    passed_BN = wide_BN & (ends_BN > target_B[:, None])
    return jnp.min(jnp.where(passed_BN, index_N[None], last_B[:, None]), axis=-1)
