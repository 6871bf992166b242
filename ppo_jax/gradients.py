"""Loss and gradients of a minibatch, for any policy: what an optimiser step is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import Config, HParams
from ppo_jax.losses import (
    aggregate_loss,
    loss_denominator,
    merge_metrics,
    policy_loss,
    value_loss,
)
from ppo_jax.reward import kl_estimate
from ppo_jax.types import Array, PyTree

MAXIMA = ("ratio_max_dev",)  # statistics of which parts and steps have a maximum, not a sum


class Rows(NamedTuple):
    """What the losses read, and `data`: whatever `evaluate` needs to compute the rest."""

    data: PyTree
    mask_BT: Array  # float32, 1 where a token is learnt from
    old_logprobs_BT: Array
    old_values_BT: Array
    advantages_BT: Array
    returns_BT: Array
    ref_logprobs_BT: Array | None = None


class Evaluation(NamedTuple):
    """Current policy and critic on some rows; None what the losses asked for do not read."""

    logprobs_BT: Array | None
    entropy_BT: Array | None
    values_BT: Array | None
    kl_BT: Array | None = None  # exact KL to the reference, where the loss wants it
    counts: dict[str, Array] = {}  # statistics that add up over parts and steps, by name


def trained_groups(config: Config, losses: tuple[str, ...]) -> tuple[str, ...]:
    """Parameter groups the losses reach: on a shared trunk the value loss trains the policy's."""
    shared = config.model.critic == "shared"
    return tuple(g for g in ("policy", "value") if g in losses or (g == "policy" and shared))


def minibatch_gradients(
    config: Config, hparams: HParams, evaluate, losses: tuple[str, ...], kl_coef, sum_parts
):
    """`gradients(params, rows) -> (statistics, gradients)` of a whole minibatch, the loss among the
    statistics. `losses` = which of "policy" and "value" are in it."""
    # Models that share nothing go one after the other, each with a gradient of its own.
    shared = config.model.critic == "shared"
    passes = [losses] if shared else [(loss,) for loss in losses]

    def gradients(params, rows: Rows):
        denominators = {
            "policy": loss_denominator(rows.mask_BT, config.ppo.aggregate),
            "token": loss_denominator(rows.mask_BT, "token-mean"),
        }

        def run(part: Rows, present_B=None, size=None):
            if present_B is not None:
                mask_BT = jnp.where(present_B[:, None], part.mask_BT, 0.0)
                part = part._replace(mask_BT=mask_BT)
            sized = () if size is None else (size,)

            def loss(trained, losses):
                out = evaluate({**params, **trained}, part, losses, *sized)
                total, stats = _loss(config, hparams, losses, out, part, denominators, kl_coef)
                return total, (stats, out.counts)

            stats, grads = {"loss": jnp.float32(0), "parts": jnp.float32(1)}, {}
            for some in passes:
                trained = {g: params[g] for g in trained_groups(config, some)}
                found, more = jax.value_and_grad(loss, has_aux=True)(trained, some)
                total, (its_stats, counts) = found
                counts = {name: stats.get(name, 0.0) + x for name, x in counts.items()}
                stats |= its_stats | counts | {"loss": stats["loss"] + total}
                grads |= more
            return stats, grads

        stats, grads = sum_parts(rows, run, _add)
        return merge_metrics(jax.tree.map(lambda x: x[None], stats)), grads

    return gradients


def _add(sums, more):
    """Statistics and gradients of two parts together."""
    (stats, grads), (more_stats, more_grads) = sums, more
    join = lambda name: jnp.maximum if name in MAXIMA else jnp.add
    stats = {name: join(name)(x, more_stats[name]) for name, x in stats.items()}
    return stats, jax.tree.map(jnp.add, grads, more_grads)


def _loss(config, hparams, losses, out: Evaluation, rows: Rows, denominators, kl_coef):
    """Loss of some rows over the whole minibatch's denominators, and statistics that add up."""
    total, stats = jnp.float32(0), {}
    if "policy" in losses:
        loss, stats = policy_loss(
            out.logprobs_BT,
            rows.old_logprobs_BT,
            rows.advantages_BT,
            rows.mask_BT,
            clip_low=hparams.clip_low,
            clip_high=hparams.clip_high,
            dual_clip=hparams.dual_clip,
            log_ratio_clamp=hparams.log_ratio_clamp,
            aggregate=config.ppo.aggregate,
            denominator=denominators["policy"],
            tokens=denominators["token"],
        )
        mean = lambda x_BT: aggregate_loss(
            x_BT, rows.mask_BT, config.ppo.aggregate, denominators["policy"]
        )
        total += loss
        entropy = mean(out.entropy_BT)
        if hparams.entropy_coef is not None:
            total -= hparams.entropy_coef * entropy
        stats = stats | {"policy_loss": loss, "entropy": entropy}
        if config.reward.kl_in == "loss":
            kl_BT = out.kl_BT
            if kl_BT is None:
                # As in the losses, zeros where masked: exp of a pad's gap may overflow.
                real = lambda x_BT: jnp.where(rows.mask_BT > 0, x_BT, 0.0)
                kl_BT = kl_estimate(
                    real(out.logprobs_BT), real(rows.ref_logprobs_BT), config.reward.kl_estimator
                )
            kl_loss = mean(kl_BT)
            total += kl_coef * kl_loss
            stats["kl_loss"] = kl_loss
    if "value" in losses:
        loss, value_stats = value_loss(
            out.values_BT,
            rows.old_values_BT,
            rows.returns_BT,
            rows.mask_BT,
            clip=hparams.value_clip,
            denominator=denominators["token"],
        )
        total += hparams.vf_coef * loss
        stats = stats | {f"value_{k}": v for k, v in value_stats.items()} | {"value_loss": loss}
    return total, stats
