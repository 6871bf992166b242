"""From scores to token rewards: KL to the reference, normalisation, penalties.

(`ppo_jax.rewards` is the library of rewards; this is what happens to their scores.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppo_jax.config import HParams, RewardOptions
from ppo_jax.errors import RewardError
from ppo_jax.masked import masked_whiten
from ppo_jax.rewards.base import ROWS
from ppo_jax.types import Rollout, Scored, ScoreMoments


class Scores(NamedTuple):
    """The weighted sum of all reward parts, and each part by name for the log."""

    sequence_B: Array  # of the parts that score a whole response
    token_BT: Array  # of the parts that reward single tokens
    parts: dict[str, Array]  # unweighted score of each part, [B]; NaN at rows it does not speak of
    valid_B: Array | None = None  # bool, rows that have a score; None: all must have
    rows: dict[str, Array] = {}  # bool [B], of the parts that speak of some rows alone

    @property
    def total_B(self) -> Array:
        """What each row earned; NaN where it has no score."""
        total_B = self.sequence_B + self.token_BT.sum(axis=1)
        return total_B if self.valid_B is None else jnp.where(self.valid_B, total_B, jnp.nan)

    def mean(self, x_B: Array) -> Array:
        """Mean of a number a row over the rows that have a score; NaN where none has."""
        return x_B.mean() if self.valid_B is None else x_B.mean(where=self.valid_B)

    def part_mean(self, name: str) -> Array:
        """Mean of a part over the rows that it speaks of and that have a score; NaN without any."""
        if name not in self.rows:
            return self.mean(self.parts[name])
        rows_B = self.rows[name] if self.valid_B is None else self.rows[name] & self.valid_B
        return self.parts[name].mean(where=rows_B)

    def counted(self, mask_BT: Array) -> Array:
        """The mask without the rows that have no score."""
        return mask_BT if self.valid_B is None else mask_BT * self.valid_B[:, None]


def kl_estimate(
    logprobs_BT: Float[Array, "B T"], ref_logprobs_BT: Float[Array, "B T"], kind: str
) -> Float[Array, "B T"]:
    """Estimate of KL(policy || reference) at each sampled token, nats.

    With d = log π − log π_ref: k1 = d (unbiased), k2 = d²/2 (its gradient is the KL's), k3 =
    exp(−d) − 1 + d (unbiased, never negative), abs = |d| (Schulman 2020, "Approximating KL
    divergence").
    """
    gap_BT = logprobs_BT - ref_logprobs_BT
    if kind == "k1":
        return gap_BT
    if kind == "k2":
        return 0.5 * gap_BT**2
    if kind == "k3":
        return jnp.expm1(-gap_BT) + gap_BT
    if kind == "abs":
        return jnp.abs(gap_BT)
    raise ValueError(f"kind: expected k1, k2, k3 or abs, got {kind!r}")


def combine_scores(
    raw: dict[str, Array], weights: dict[str, float], rollout: Rollout, *, on_error: str = "abort"
) -> Scores:
    """Weigh and sum the parts; [B] scores a response, [B, T] its tokens.

    A score `part/key`, from a host function that returns a dict, weighs what its part does. A part
    with a score `<name>.rows` beside it is 0 where that is 0. With `on_error="mask"` a row has no
    score where one of its parts is not finite.
    """
    sequence_B = jnp.zeros(rollout.lengths_B.shape, jnp.float32)
    token_BT = jnp.zeros(rollout.mask_BT.shape, jnp.float32)
    parts, valid_B = {}, jnp.ones(rollout.lengths_B.shape, bool)
    rows = {name: raw[name + ROWS] > 0 for name in raw if name + ROWS in raw}
    for name, score in raw.items():
        score = score.astype(jnp.float32)
        weight = weights[name] if name in weights else weights[name.split("/")[0]]
        if score.shape not in (sequence_B.shape, token_BT.shape):
            raise RewardError(
                f"reward {name}: returned shape {list(score.shape)}, expected one score a response "
                f"{list(sequence_B.shape)} or a token {list(token_BT.shape)}"
            )
        if name in rows:
            score = jnp.where(rows[name].reshape(-1, *[1] * (score.ndim - 1)), score, 0.0)
        if score.ndim == 1:
            sequence_B, parts[name] = sequence_B + weight * score, score
        else:
            score = jnp.where(rollout.mask_BT > 0, score, 0.0)
            token_BT, parts[name] = token_BT + weight * score, score.sum(axis=1)
        valid_B &= jnp.isfinite(parts[name])
    parts |= {name: jnp.where(rows_B, parts[name], jnp.nan) for name, rows_B in rows.items()}
    if on_error == "abort":
        return Scores(sequence_B, token_BT, parts, rows=rows)
    valid_B &= jnp.isfinite(sequence_B + token_BT.sum(axis=1))  # of finite parts, too
    sequence_B = jnp.where(valid_B, sequence_B, 0.0)
    return Scores(sequence_B, jnp.where(valid_B[:, None], token_BT, 0.0), parts, valid_B, rows)


def update_moments(
    moments: ScoreMoments, scores_B: Array, valid_B: Array | None = None
) -> ScoreMoments:
    """Running moments with a batch added (Chan et al. 1983), less the rows that have no score and
    the non-finite ones."""
    finite_B = jnp.isfinite(scores_B).astype(jnp.float32)
    if valid_B is not None:
        finite_B = finite_B * valid_B
    scores_B = jnp.where(finite_B > 0, scores_B, 0.0)
    n = finite_B.sum()
    mean = scores_B.sum() / jnp.maximum(n, 1.0)
    m2 = (finite_B * (scores_B - mean) ** 2).sum()
    count = moments.count + n
    gap = mean - moments.mean
    share = n / jnp.maximum(count, 1.0)
    return ScoreMoments(
        count, moments.mean + gap * share, moments.m2 + m2 + gap**2 * moments.count * share
    )


def shape_scores(
    options: RewardOptions,
    hparams: HParams,
    scores: Scores,
    moments: ScoreMoments,
    rollout: Rollout,
) -> Array:
    """Final score [B] of each response: normalised, clipped, then penalised, in this order."""
    score_B = scores.sequence_B
    if options.normalize_scores:
        std = jnp.sqrt(moments.m2 / jnp.maximum(moments.count - 1.0, 1.0))
        score_B = (score_B - moments.mean) / (std + 1e-6)
    if hparams.score_clip is not None:
        score_B = jnp.clip(score_B, -hparams.score_clip, hparams.score_clip)
    if hparams.missing_eos_penalty is not None:
        score_B = score_B - hparams.missing_eos_penalty * ~rollout.ended_B
    if hparams.length_penalty is not None:
        score_B = score_B - hparams.length_penalty * rollout.generated_B
    if hparams.overlong_penalty is not None:
        # DAPO's soft punishment (arXiv 2503.14476): rises linearly over the last tokens allowed.
        start = rollout.mask_BT.shape[1] - options.overlong_buffer
        over_B = jnp.maximum(rollout.lengths_B - start, 0) / options.overlong_buffer
        score_B = score_B - hparams.overlong_penalty * over_B
    return score_B


def reference_kl(options: RewardOptions, scored: Scored) -> Array:
    """KL term [B, T] of the reward, by the configured estimator."""
    if options.kl_estimator == "full":
        return scored.kl_BT
    return kl_estimate(scored.old_logprobs_BT, scored.ref_logprobs_BT, options.kl_estimator)


def shape_rewards(
    options: RewardOptions,
    score_B: Array,
    token_BT: Array,
    kl_BT: Array,
    kl_coef,
    rollout: Rollout,
    mask_BT: Array,
) -> Array:
    """Token rewards: the score lands on the last generated token, the KL on each (Ziegler et al.
    2019, arXiv 1909.08593). With the KL in the loss only the scores are left. 0 outside of
    `mask_BT`."""
    rewards_BT = token_BT + jnp.where(rollout.last_BT, score_B[:, None], 0.0)
    if options.kl_in == "reward":
        rewards_BT = rewards_BT - kl_coef * kl_BT
    rewards_BT = jnp.where(mask_BT > 0, rewards_BT, 0.0)
    if options.whiten_rewards:
        # The mean stays: removing it would change what a longer response earns.
        rewards_BT = masked_whiten(rewards_BT, mask_BT, shift_mean=False)
    return rewards_BT
