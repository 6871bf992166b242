"""The clipped-PPO update: epochs × minibatches × microbatches as scans, all on the device.

The public losses are `policy_loss` and `value_loss`. `ppo_update` knows nothing of language models:
it is handed `evaluate(params, rows) -> Evaluation`, so it serves any policy.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.config import Config, HParams
from ppo_jax.losses import (
    aggregate_loss,
    loss_denominator,
    merge_metrics,
    policy_loss,
    value_loss,
)
from ppo_jax.microbatch import deal
from ppo_jax.optimizer import apply_updates, clip_by_global_norm
from ppo_jax.reward import kl_estimate
from ppo_jax.types import Array, PyTree

# Statistics that are not reported as means over the optimiser steps, but as sums or maxima.
COUNTS = ("ran", "skipped")
MAXIMA = ("ratio_max_dev",)

__all__ = ["Evaluation", "Rows", "Optimisers", "policy_loss", "ppo_update", "value_loss"]


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
    """Current policy and critic on some rows."""

    logprobs_BT: Array
    entropy_BT: Array
    values_BT: Array
    kl_BT: Array | None = None  # exact KL to the reference, where the loss wants it


class Optimisers(NamedTuple):
    """Gradient transformation and learning rate (traced) of the two parameter groups."""

    policy: tuple[object, Array]
    value: tuple[object, Array]


class _Carry(NamedTuple):
    params: PyTree
    opt_state: PyTree
    stopped: Array  # target KL passed: the policy's remaining steps do nothing


def ppo_update(
    config: Config,
    hparams: HParams,
    optimisers: Optimisers,
    evaluate: Callable[[PyTree, Rows], Evaluation],
    params: PyTree,
    opt_state: PyTree,
    rows: Rows,
    key: Array,
    *,
    kl_coef: Array,
    freeze_policy: Array,
    constrain: Callable[[PyTree], PyTree] = lambda minibatches: minibatches,
):
    """Run all optimiser steps of one iteration.

    Returns (params, opt_state, metrics). `freeze_policy` (traced bool) holds the policy group still
    while the critic warms up. A step whose loss or gradient is not finite is not applied, but
    counted (`skipped`). One whose approximate KL passes 1.5 × `hparams.target_kl` is not applied
    and is the last one to touch the policy.
    """
    carry = _Carry(params, opt_state, jnp.zeros((), bool))
    history = []
    for parts, epochs in epoch_plan(config):
        step = _minibatch_step(
            config, hparams, optimisers, evaluate, parts, kl_coef=kl_coef, freeze=freeze_policy
        )

        def epoch(carry, epoch_key, step=step):
            order_B = jax.random.permutation(epoch_key, rows.mask_BT.shape[0])
            shuffled = jax.tree.map(lambda x: x[order_B], rows)
            count = config.ppo.minibatches
            split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), shuffled)
            return lax.scan(step, carry, constrain(split))

        key, sub = jax.random.split(key)
        carry, stats = lax.scan(epoch, carry, jax.random.split(sub, epochs))
        history.append(jax.tree.map(lambda x: x.reshape(-1), stats))
    return carry.params, carry.opt_state, _summarise(history)


def epoch_plan(config: Config) -> list[tuple[tuple[str, ...], int]]:
    """Which losses run for how many epochs: both together first, then the one that has more."""
    both = min(config.ppo.epochs, config.value_epochs)
    plan = [
        (("policy", "value"), both),
        (("policy",), config.ppo.epochs - both),
        (("value",), config.value_epochs - both),
    ]
    return [(parts, epochs) for parts, epochs in plan if epochs > 0]


def trained_groups(config: Config, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Parameter groups the losses reach: on a shared trunk the value loss trains the policy's."""
    shared = config.model.critic == "shared"
    return tuple(g for g in ("policy", "value") if g in parts or (g == "policy" and shared))


def _minibatch_step(config, hparams, optimisers, evaluate, parts, *, kl_coef, freeze):
    groups, shared = trained_groups(config, parts), config.model.critic == "shared"
    gradients = _gradients(config, hparams, evaluate, parts, kl_coef)

    def run(carry: _Carry, rows: Rows):
        loss, stats, grads = gradients(carry.params, rows)
        grads, norms = _clip(config, hparams, grads)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(jnp.stack(list(norms.values()))))
        stop = jnp.zeros((), bool)
        if hparams.target_kl is not None and "policy" in parts:
            stop = finite & (stats["approxkl"] > 1.5 * hparams.target_kl)
        params, opt_state = dict(carry.params), dict(carry.opt_state)
        for group in groups:
            apply = finite
            if group == "policy":
                apply &= ~(freeze | stop)
            elif shared:
                apply &= ~stop
            transform, learning_rate = getattr(optimisers, group)
            params[group], opt_state[group] = lax.cond(
                apply,
                lambda p, s, g, t=transform, lr=learning_rate: _apply(t, lr, p, s, g),
                lambda p, s, g: (p, s),
                carry.params[group],
                carry.opt_state[group],
                grads[group],
            )
        stats |= {"loss": loss, "ran": jnp.float32(1), "skipped": 1.0 - finite}
        stats |= {f"grad_norm/{group}": norm for group, norm in norms.items()}
        return _Carry(params, opt_state, stop), stats

    if hparams.target_kl is None or "policy" not in groups:
        return run

    def after_stop(carry: _Carry, rows: Rows):
        """Nothing; but a critic that is a model of its own learns on."""
        stats = jax.eval_shape(run, carry, rows)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
        if shared or "value" not in parts:
            return carry, zeros
        critic_step = _minibatch_step(
            config, hparams, optimisers, evaluate, ("value",), kl_coef=kl_coef, freeze=freeze
        )
        after, critic_stats = critic_step(carry, rows)
        return after._replace(stopped=carry.stopped), zeros | {"skipped": critic_stats["skipped"]}

    def run_unless_stopped(carry: _Carry, rows: Rows):
        return lax.cond(carry.stopped, after_stop, run, carry, rows)

    return run_unless_stopped


def _gradients(config, hparams, evaluate, parts, kl_coef):
    groups = trained_groups(config, parts)

    def gradients(params, rows: Rows):
        """Loss, gradients and statistics of a minibatch, summed over its microbatches."""
        denominators = {
            "policy": loss_denominator(rows.mask_BT, config.ppo.aggregate),
            "token": loss_denominator(rows.mask_BT, "token-mean"),
        }

        def loss(trained, part):
            out = evaluate({**params, **trained}, part)
            return _loss(config, hparams, parts, out, part, denominators, kl_coef)

        grad = jax.value_and_grad(loss, has_aux=True)
        trained = {g: params[g] for g in groups}
        if config.ppo.microbatches == 1:
            (total, stats), grads = grad(trained, rows)
            return total, merge_metrics(jax.tree.map(lambda x: x[None], stats)), grads

        def accumulate(sums, part):
            (total, stats), grads = grad(trained, part)
            return jax.tree.map(jnp.add, sums, (total, grads)), stats

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trained))
        (total, grads), stats = lax.scan(accumulate, zeros, deal(rows, config.ppo.microbatches))
        return total, merge_metrics(stats), grads

    return gradients


def _loss(config, hparams, parts, out: Evaluation, rows: Rows, denominators, kl_coef):
    """Loss of some rows over the whole minibatch's denominators, and statistics that add up."""
    total, stats = jnp.float32(0), {}
    if "policy" in parts:
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
    if "value" in parts:
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


def _clip(config: Config, hparams: HParams, grads):
    """Clip by global norm: of everything on a shared trunk, of each group where the critic is its
    own model with its own optimiser."""
    if config.model.critic == "shared":
        norms = {g: _norm(grads[g]) for g in grads}
        return clip_by_global_norm(grads, hparams.max_grad_norm)[0], norms
    clipped = {g: clip_by_global_norm(grads[g], hparams.max_grad_norm) for g in grads}
    return {g: c[0] for g, c in clipped.items()}, {g: c[1] for g, c in clipped.items()}


def _norm(tree):
    return clip_by_global_norm(tree, None)[1]


def _apply(transform, learning_rate, params, opt_state, grads):
    updates, opt_state = transform.update(grads, opt_state, params)
    return apply_updates(params, updates, learning_rate), opt_state


def _summarise(history: list[dict]) -> dict[str, Array]:
    """Means over the optimiser steps that ran; `*_first` from the very first one."""
    metrics = {}
    for name in dict.fromkeys(name for stats in history for name in stats):
        having = [stats for stats in history if name in stats]
        values = jnp.concatenate([stats[name] for stats in having])
        ran = jnp.concatenate([stats["ran"] for stats in having])
        if name in COUNTS:
            metrics[name] = values.sum()
        elif name in MAXIMA:
            metrics[name] = values.max()
        else:
            metrics[name] = jnp.sum(values * ran) / jnp.maximum(ran.sum(), 1.0)
    for name in ("approxkl", "ratio_max_dev"):
        if name in history[0]:
            metrics[f"{name}_first"] = history[0][name][0]
    return metrics
