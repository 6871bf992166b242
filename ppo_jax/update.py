"""The clipped-PPO update: epochs × minibatches × microbatches as scans, all on the device.

The public losses are `policy_loss` and `value_loss`. `ppo_update` knows nothing of language models:
it is handed `evaluate(params, rows, losses) -> Evaluation`, so it serves any policy.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ppo_jax.config import Config, HParams
from ppo_jax.gradients import MAXIMA, Evaluation, Rows, minibatch_gradients, trained_groups
from ppo_jax.losses import policy_loss, value_loss
from ppo_jax.offload import fetched, put_back
from ppo_jax.optimizer import apply_updates, clip_by_global_norm
from ppo_jax.parts import SumParts, sum_over_rows
from ppo_jax.types import Array, PyTree

# Statistics that are reported as sums over the optimiser steps, not as means.
COUNTS = ("ran", "skipped")

__all__ = ["Evaluation", "Rows", "Optimisers", "policy_loss", "ppo_update", "value_loss"]


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
    evaluate: Callable[..., Evaluation],
    params: PyTree,
    opt_state: PyTree,
    rows: Rows,
    key: Array,
    *,
    kl_coef: Array,
    freeze_policy: Array,
    constrain: Callable[[PyTree], PyTree] = lambda minibatches: minibatches,
    sum_parts: SumParts | None = None,
):
    """Run all optimiser steps of one iteration.

    A minibatch is run in `config.ppo.microbatches` parts of as many rows; or in those of
    `sum_parts`, `evaluate` being told the static size that holds the rows with a real token.

    Returns (params, opt_state, metrics). `freeze_policy` (traced bool) holds the policy group still
    while the critic warms up. A step whose loss or gradient is not finite is not applied, but
    counted (`skipped`). One whose approximate KL passes 1.5 × `hparams.target_kl` is not applied
    and is the last one to touch the policy.
    """
    carry = _Carry(params, opt_state, jnp.zeros((), bool))
    history = []
    if sum_parts is None:
        sum_parts = functools.partial(sum_over_rows, config.ppo.microbatches)
    for losses, epochs in epoch_plan(config):
        step = _minibatch_step(
            config,
            hparams,
            optimisers,
            lambda losses: minibatch_gradients(
                config, hparams, evaluate, losses, kl_coef, sum_parts
            ),
            losses,
            freeze=freeze_policy,
        )

        def epoch(carry, epoch_key, step=step):
            order_B = jax.random.permutation(epoch_key, rows.mask_BT.shape[0])
            return lax.scan(step, carry, constrain(split_rows(rows, order_B, config)))

        key, epoch_keys = _epoch_keys(key, epochs)
        carry, stats = lax.scan(epoch, carry, epoch_keys)
        history.append(jax.tree.map(lambda x: x.reshape(-1), stats))
    return carry.params, carry.opt_state, _summarise(history)


def first_order(config: Config, key: Array) -> Array:
    """Rows [B] in the order in which the first epoch takes them, of the update with this key."""
    _, epoch_keys = _epoch_keys(key, epoch_plan(config)[0][1])
    return jax.random.permutation(epoch_keys[0], config.rollout.batch_size)


def _epoch_keys(key: Array, epochs: int) -> tuple[Array, Array]:
    key, sub = jax.random.split(key)
    return key, jax.random.split(sub, epochs)


def split_rows(rows: PyTree, order_B: Array, config: Config) -> PyTree:
    """Rows in this order, as [minibatches, rows of one, ...]."""
    split = lambda x: x[order_B].reshape(config.ppo.minibatches, -1, *x.shape[1:])
    return jax.tree.map(split, rows)


def epoch_plan(config: Config) -> list[tuple[tuple[str, ...], int]]:
    """Which losses run for how many epochs: both together first, then the one that has more."""
    both = min(config.ppo.epochs, config.value_epochs)
    plan = [
        (("policy", "value"), both),
        (("policy",), config.ppo.epochs - both),
        (("value",), config.value_epochs - both),
    ]
    return [(losses, epochs) for losses, epochs in plan if epochs > 0]


def _minibatch_step(config, hparams, optimisers, gradients_of, losses, *, freeze):
    groups, shared = trained_groups(config, losses), config.model.critic == "shared"
    gradients = gradients_of(losses)

    def run(carry: _Carry, rows: Rows):
        stats, grads = gradients(carry.params, rows)
        grads, norms = _clip(config, hparams, grads)
        finite = jnp.isfinite(stats["loss"]) & jnp.all(
            jnp.isfinite(jnp.stack(list(norms.values())))
        )
        stop = jnp.zeros((), bool)
        if hparams.target_kl is not None and "policy" in losses:
            stop = finite & (stats["approxkl"] > 1.5 * hparams.target_kl)
        params, opt_state = dict(carry.params), dict(carry.opt_state)
        # Where no row has anything to learn from, the moments alone must not move the weights.
        learns = jnp.any(rows.mask_BT > 0)
        for group in groups:
            apply = finite & learns
            if group == "policy":
                apply &= ~(freeze | stop)
            elif shared:
                apply &= ~stop
            params[group], opt_state[group] = apply_if(
                apply,
                *getattr(optimisers, group),
                carry.params[group],
                carry.opt_state[group],
                grads[group],
            )
        stats |= {"ran": jnp.float32(1), "skipped": 1.0 - finite}
        stats |= {f"grad_norm/{group}": norm for group, norm in norms.items()}
        return _Carry(params, opt_state, stop), stats

    if hparams.target_kl is None or "policy" not in groups:
        return run

    def after_stop(carry: _Carry, rows: Rows):
        """Nothing; but a critic that is a model of its own learns on."""
        stats = jax.eval_shape(run, carry, rows)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
        if shared or "value" not in losses:
            return carry, zeros
        critic_step = _minibatch_step(
            config, hparams, optimisers, gradients_of, ("value",), freeze=freeze
        )
        after, critic_stats = critic_step(carry, rows)
        return after._replace(stopped=carry.stopped), zeros | {"skipped": critic_stats["skipped"]}

    def run_unless_stopped(carry: _Carry, rows: Rows):
        return lax.cond(carry.stopped, after_stop, run, carry, rows)

    return run_unless_stopped


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


def apply_if(apply: Array, transform, learning_rate: Array, params, opt_state, grads):
    """(params, opt_state) after an optimiser step, or as they are; written over the old ones.

    In what form XLA writes in place differs: on the CPU and on a TPU a branch (a selection needs
    old and new at a time), on a GPU a selection (there a branch's results are arrays of their own).
    """

    def step(params, opt_state, grads):
        updates, opt_state = transform.update(grads, opt_state, params)
        return apply_updates(params, updates, learning_rate), opt_state

    resting = opt_state
    opt_state = fetched(opt_state, after=grads)
    branch, select = (
        functools.partial(_branch, apply, step),
        functools.partial(_select, apply, step),
    )
    forms = {"cuda": select, "rocm": select, "default": branch}
    params, opt_state = lax.platform_dependent(params, opt_state, grads, **forms)
    return params, put_back(opt_state, like=resting)


def _branch(apply: Array, step, params, opt_state, grads):
    leave = lambda params, opt_state, grads: (params, opt_state)
    return lax.cond(apply, step, leave, params, opt_state, grads)


def _select(apply: Array, step, params, opt_state, grads):
    choose = lambda new, old: jnp.where(apply, new, old)
    return jax.tree.map(choose, step(params, opt_state, grads), (params, opt_state))


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
