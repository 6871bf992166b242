"""Clipped policy and value losses, and how token losses become one number.

Everything a loss returns is additive over a split of the batch: with `denominator` (and `tokens`)
of the whole batch, losses and metrics of the microbatches sum to those of the whole, the maximum
`ratio_max_dev` apart; `merge_metrics` does that sum. Masked positions are never read.
"""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from ppo_jax.errors import ConfigError

Aggregate = Literal["token-mean", "seq-mean", "seq-sum-norm"]
Scalar = Float[Array, ""]
Loss = tuple[Scalar, dict[str, Scalar]]


def loss_denominator(mask_BT: Float[Array, "B T"], aggregate: Aggregate = "token-mean") -> Scalar:
    """What the summed loss of a whole batch is divided by.

    token-mean: its real tokens. seq-mean: its sequences that have any. seq-sum-norm: all its
    sequences, since that normaliser must not depend on the lengths.
    """
    if aggregate == "token-mean":
        return jnp.sum(mask_BT > 0).astype(jnp.float32)
    if aggregate == "seq-mean":
        return jnp.sum(jnp.any(mask_BT > 0, axis=1)).astype(jnp.float32)
    if aggregate == "seq-sum-norm":
        return jnp.float32(mask_BT.shape[0])
    raise ConfigError(
        f"ppo.aggregate: got {aggregate!r}, expected token-mean, seq-mean or seq-sum-norm"
    )


def aggregate_loss(
    x_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    aggregate: Aggregate = "token-mean",
    denominator: ScalarLike | None = None,
) -> Scalar:
    """Token losses to one number; a mask without a real token gives 0.

    token-mean: sum over tokens / tokens (DAPO, https://arxiv.org/abs/2503.14476). seq-mean: mean
    over sequences of their token means (GRPO, https://arxiv.org/abs/2402.03300). seq-sum-norm: sum
    over tokens / (sequences * T), T the width of the array, so a sequence's weight does not depend
    on its length (Dr. GRPO, https://arxiv.org/abs/2503.20783). `denominator` is `loss_denominator`
    of the whole batch where `x_BT` is a part of it; None: of this mask.
    """
    if denominator is None:
        denominator = loss_denominator(mask_BT, aggregate)
    real_BT = mask_BT > 0
    sum_B = jnp.sum(jnp.where(real_BT, x_BT, 0.0), axis=1)
    if aggregate == "seq-mean":
        sum_B = sum_B / jnp.maximum(jnp.sum(real_BT, axis=1), 1)
    elif aggregate == "seq-sum-norm":
        sum_B = sum_B / x_BT.shape[1]
    return jnp.sum(sum_B) / jnp.maximum(denominator, 1.0)


def policy_loss(
    logprobs_BT: Float[Array, "B T"],
    old_logprobs_BT: Float[Array, "B T"],
    advantages_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    clip_low: ScalarLike = 0.2,
    clip_high: ScalarLike = 0.2,
    dual_clip: ScalarLike | None = None,
    log_ratio_clamp: ScalarLike | None = None,
    aggregate: Aggregate = "token-mean",
    denominator: ScalarLike | None = None,
    tokens: ScalarLike | None = None,
) -> Loss:
    """Clipped surrogate max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = exp(logp - old).

    https://arxiv.org/abs/1707.06347; unequal clips https://arxiv.org/abs/2503.14476. A clip of inf
    is no clip in the same program. `dual_clip` (> 1) bounds the loss by dual_clip * -A where A < 0
    (https://arxiv.org/abs/1912.09729); `log_ratio_clamp` bounds |logp - old| before exp. Metrics
    are token means over `tokens`, the whole batch's (None: `denominator` if that counts tokens,
    else of this mask): `approxkl` half the mean squared log ratio, before its clamp; `clipfrac`;
    `ratio`; `ratio_sq_dev` = mean (r - 1)^2, from which `merge_metrics` makes the variance;
    `ratio_max_dev` = max |r - 1|.
    """
    chex.assert_equal_shape([logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT])
    real_BT = mask_BT > 0
    # Zeros before any arithmetic: a NaN behind a mask would survive `where` in the gradient.
    full_log_ratio_BT = jnp.where(real_BT, logprobs_BT, 0.0) - jnp.where(
        real_BT, old_logprobs_BT, 0.0
    )
    advantages_BT = jnp.where(real_BT, advantages_BT, 0.0)
    log_ratio_BT = full_log_ratio_BT
    if log_ratio_clamp is not None:
        log_ratio_BT = jnp.clip(full_log_ratio_BT, -log_ratio_clamp, log_ratio_clamp)
    ratio_BT = jnp.exp(log_ratio_BT)

    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    loss_BT = jnp.maximum(plain_BT, clipped_BT)
    if dual_clip is not None:
        negative_BT = advantages_BT < 0
        bound_BT = dual_clip * jnp.where(negative_BT, -advantages_BT, 1.0)
        loss_BT = jnp.where(negative_BT, jnp.minimum(loss_BT, bound_BT), loss_BT)
    loss = aggregate_loss(loss_BT, mask_BT, aggregate, denominator)

    if tokens is None and aggregate == "token-mean":
        tokens = denominator

    def token_mean(x_BT: Array) -> Scalar:
        return aggregate_loss(x_BT, mask_BT, "token-mean", tokens)

    deviation_BT = jnp.where(real_BT, ratio_BT - 1.0, 0.0)
    return loss, {
        "approxkl": 0.5 * token_mean(full_log_ratio_BT**2),
        "clipfrac": token_mean((clipped_BT > plain_BT).astype(jnp.float32)),
        "ratio": token_mean(ratio_BT),
        "ratio_sq_dev": token_mean(deviation_BT**2),
        "ratio_max_dev": jnp.max(jnp.abs(deviation_BT), initial=0.0),
    }


def value_loss(
    values_BT: Float[Array, "B T"],
    old_values_BT: Float[Array, "B T"],
    returns_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    clip: ScalarLike | None = 0.2,
    denominator: ScalarLike | None = None,
) -> Loss:
    """Half the token mean of max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2).

    As in OpenAI's baselines and TRL. `clip` inf is no clip in the same program, None no clip at
    all. `denominator`: the whole batch's real tokens; None: of this mask. Metrics: `clipfrac`,
    the share of tokens where the clipped square is the larger; `error`, the mean of (V - R)^2.
    """
    chex.assert_equal_shape([values_BT, old_values_BT, returns_BT, mask_BT])
    real_BT = mask_BT > 0
    values_BT = jnp.where(real_BT, values_BT, 0.0)
    old_values_BT = jnp.where(real_BT, old_values_BT, 0.0)
    returns_BT = jnp.where(real_BT, returns_BT, 0.0)

    def token_mean(x_BT: Array) -> Scalar:
        return aggregate_loss(x_BT, mask_BT, "token-mean", denominator)

    plain_BT = (values_BT - returns_BT) ** 2
    error = token_mean(plain_BT)
    if clip is None:
        return 0.5 * error, {"clipfrac": jnp.float32(0.0), "error": error}
    near_old_BT = jnp.clip(values_BT, old_values_BT - clip, old_values_BT + clip)
    clipped_BT = (near_old_BT - returns_BT) ** 2
    return 0.5 * token_mean(jnp.maximum(plain_BT, clipped_BT)), {
        "clipfrac": token_mean((clipped_BT > plain_BT).astype(jnp.float32)),
        "error": error,
    }


def merge_metrics(metrics_N: dict[str, Float[Array, " N"]]) -> dict[str, Scalar]:
    """Metrics of a batch from those of its N parts, each taken over the whole batch's tokens.

    Sums, but for the maximum of `ratio_max_dev`; `ratio_sq_dev` becomes `ratio_var`, the variance
    of the ratio over real tokens (taken about 1, so near 1 nothing cancels).
    """
    merged = {name: jnp.sum(x_N) for name, x_N in metrics_N.items() if name != "ratio_max_dev"}
    if "ratio_max_dev" in metrics_N:
        merged["ratio_max_dev"] = jnp.max(metrics_N["ratio_max_dev"])
    if "ratio_sq_dev" in merged:
        spread = merged.pop("ratio_sq_dev") - (merged["ratio"] - 1.0) ** 2
        merged["ratio_var"] = jnp.maximum(spread, 0.0)
    return merged


def importance_weights(
    old_logprobs_BT: Float[Array, "B T"],
    sampler_logprobs_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    cap: ScalarLike,
) -> Float[Array, "B T"]:
    """min(p_old / p_sampler, cap) of each token, 1 where masked.

    Truncated importance sampling: the sampler (8-bit weights, another precision) draws from a
    policy a little off the one that is trained (https://fengyao.notion.site/off-policy-rl).
    """
    log_ratio_BT = jnp.where(mask_BT > 0, old_logprobs_BT - sampler_logprobs_BT, 0.0)
    return jnp.exp(jnp.minimum(log_ratio_BT, jnp.log(cap)))
