"""The numbers an iteration reports, computed on the device: one flat dict of float32 scalars.

Names are TRL's where TRL has the quantity.
"""

import jax.numpy as jnp

from ppo_jax.config import Config, HParams
from ppo_jax.losses import importance_weights
from ppo_jax.masked import masked_mean, masked_var
from ppo_jax.optimizer import learning_rate_factor
from ppo_jax.reward import Scores
from ppo_jax.types import Array, Rollout, Scored, TrainState

# statistic of the update -> metric; those a config leaves out of the program are not reported
UPDATE_NAMES = {
    "approxkl": "policy/approxkl_avg",
    "approxkl_first": "policy/approxkl_first",
    "clipfrac": "policy/clipfrac_avg",
    "entropy": "policy/entropy_avg",
    "policy_loss": "loss/policy_avg",
    "kl_loss": "loss/kl_avg",
    "value_loss": "loss/value_avg",
    "value_clipfrac": "val/clipfrac_avg",
    "value_error": "val/error",
    "ratio": "val/ratio",
    "ratio_var": "val/ratio_var",
    "ratio_max_dev": "val/ratio_max_dev",
    "ratio_max_dev_first": "val/ratio_first_max_dev",
    "grad_norm/policy": "grad_norm/policy",
    "grad_norm/value": "grad_norm/value",
    "parts": "update/parts",
    "ran": "update/steps",
    "skipped": "update/skipped_nonfinite",
}


def iteration_metrics(
    config: Config,
    hparams: HParams,
    state: TrainState,
    rollout: Rollout,
    scored: Scored,
    scores: Scores,
    score_B: Array,
    rewards_BT: Array,
    nonfinite: Array,
    stats: dict[str, Array],
) -> dict[str, Array]:
    """Everything logged of one iteration but times; `state` is the one before the update."""
    final_B = score_B + scores.token_BT.sum(axis=1)
    kl = sequence_kl(scored, rollout)
    penalty = state.kl_coef * kl if config.reward.kl_in == "reward" else jnp.float32(0)
    metrics = {
        "objective/kl": kl,
        "objective/entropy": -(scored.old_logprobs_BT * rollout.mask_BT).sum(axis=1).mean(),
        "objective/scores": scores.mean(scores.total_B),
        "objective/scores_std": scores.total_B.std(where=scores.valid_B),
        "objective/scores_shaped": scores.mean(final_B),
        "objective/non_score_reward": -penalty,
        "objective/rlhf_reward": scores.mean(final_B) - penalty,
        "objective/rewards": scores.mean(rewards_BT.sum(axis=1)),
        "objective/kl_coef": state.kl_coef,
        "rollout/length_mean": rollout.generated_B.astype(jnp.float32).mean(),
        "rollout/length_max": rollout.lengths_B.max().astype(jnp.float32),
        "rollout/ended": rollout.ended_B.astype(jnp.float32).mean(),
        "rollout/slot_use": slot_use(rollout),
        "update/padding": 1.0 - stats["real_trunk_flops"] / stats["trunk_flops"],
        "rollout/tokens": rollout.mask_BT.sum(),
        "rollout/tokens_total": state.tokens + rollout.mask_BT.sum(),
        **_logprob_gap(config, hparams, rollout, scored, stats),
        "val/num_eos_tokens": rollout.ended_B.sum().astype(jnp.float32),
        "lr": hparams.learning_rate * learning_rate_factor(config, state.step),
        "update/nonfinite_in_row": nonfinite.astype(jnp.float32),
        "episode": (state.step + 1.0) * config.rollout.batch_size,
    }
    metrics |= {f"reward/{name}": scores.part_mean(name) for name in scores.parts}
    metrics |= {f"env/{name}": x_B.mean() for name, x_B in (rollout.measures or {}).items()}
    if scores.valid_B is not None:
        metrics["reward/masked"] = (~scores.valid_B).sum().astype(jnp.float32)
    return metrics | {UPDATE_NAMES[k]: v for k, v in stats.items() if k in UPDATE_NAMES}


def slot_use(rollout: Rollout) -> Array:
    """Share of the decode loops' slots x steps that took a token; 1 where no loop ran."""
    drawn = (rollout.lengths_B - 1).astype(jnp.float32).sum()  # a first token is of the prefill
    steps = rollout.slot_steps_B.sum()
    return jnp.where(steps > 0, drawn / jnp.maximum(steps, 1.0), 1.0)


def sequence_kl(scored: Scored, rollout: Rollout) -> Array:
    """Mean over sequences of the KL to the reference summed over tokens, nats: exact where it was
    computed, else the k1 estimate."""
    kl_BT = scored.kl_BT
    if kl_BT is None:
        kl_BT = scored.old_logprobs_BT - scored.ref_logprobs_BT
    return jnp.where(rollout.mask_BT > 0, kl_BT, 0.0).sum(axis=1).mean()


def _logprob_gap(config: Config, hparams: HParams, rollout, scored: Scored, stats):
    """|sampler − training forward| log-probability over real tokens, nats: mean and largest."""
    if config.rollout.old_logprobs == "sampler":
        # Only the first minibatch is recomputed then: root mean square of its log ratios.
        return {"rollout/logprob_gap": jnp.sqrt(2.0 * stats["approxkl_first"])}
    gap_BT = jnp.abs(rollout.logprobs_BT - scored.old_logprobs_BT)
    return {
        "rollout/logprob_gap": masked_mean(gap_BT, rollout.mask_BT),
        "rollout/logprob_gap_max": jnp.where(rollout.mask_BT > 0, gap_BT, 0.0).max(),
        **_importance(hparams, rollout, scored),
    }


def _importance(hparams: HParams, rollout: Rollout, scored: Scored) -> dict[str, Array]:
    """Mean of the importance weights, and the share of tokens whose weight the cap bounds."""
    if hparams.tis_cap is None:
        return {}
    mask_BT = rollout.mask_BT
    weights_BT = importance_weights(
        scored.old_logprobs_BT, rollout.logprobs_BT, mask_BT, cap=hparams.tis_cap
    )
    capped_BT = (weights_BT >= hparams.tis_cap * (1 - 1e-6)).astype(jnp.float32)
    return {
        "rollout/tis_weight": masked_mean(weights_BT, mask_BT),
        "rollout/tis_capped": masked_mean(capped_BT, mask_BT),
    }


def explained_variance(scored: Scored, returns_BT: Array, mask_BT: Array) -> Array:
    """1 − Var[returns − values] / Var[returns]: 1 is a perfect critic, 0 a constant one."""
    left = masked_var(returns_BT - scored.values_BT, mask_BT)
    return 1.0 - left / jnp.maximum(masked_var(returns_BT, mask_BT), 1e-8)
