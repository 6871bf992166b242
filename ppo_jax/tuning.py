"""One optimiser step on a given objective, for supervised fine-tuning and reward models alike.

`ppo_update` learns from what was sampled; here a batch is given, and one program does the rest:
gradients over its parts by tokens, clip, Adam, schedule.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config import HParams
from ppo_jax.optimizer import clip_by_global_norm
from ppo_jax.parts import ByTokens, SumParts, sum_over_rows, sum_over_tokens
from ppo_jax.setup import Setup
from ppo_jax.step import optimisers
from ppo_jax.trunks import assemble
from ppo_jax.types import Array, PyTree, TrainState
from ppo_jax.update import apply_if

Sums = dict[str, Array]  # statistics, summed


class Objective(NamedTuple):
    """What a model is tuned for. A batch is a pytree of rows [N, ...], none of which is taken
    apart; all functions are traced."""

    groups: tuple[str, ...]  # of parameters that it trains
    recipe: Callable[[Setup, PyTree], ByTokens]  # of a batch's parts
    tokens: Callable[[PyTree], Array]  # of each row in a stream, [N] int32; 0: it is left out
    count: Callable[[PyTree], Array]  # of what the loss is a mean over, in the whole batch
    # (setup, params, rows, present_N, size) -> sums over the present rows, "loss" among them; as
    # padded rows where size is None, else in streams of so many tokens a device.
    sums: Callable[[Setup, PyTree, PyTree, Array | None, int | None], Sums]


def tuning_step(
    setup: Setup,
    objective: Objective,
    state: TrainState,
    frozen: PyTree,
    hparams: HParams,
    batch: PyTree,
) -> tuple[TrainState, Sums]:
    """One optimiser step in one program. Returns (state, metrics); a step whose loss or gradient is
    not finite is not applied, but counted (`update/skipped_nonfinite`)."""
    count = objective.count(batch).astype(jnp.float32)

    def run(rows: PyTree, present_N=None, size=None):
        def loss(trained: PyTree):
            params = assemble(frozen, {**state.params, **trained})
            sums = objective.sums(setup, params, rows, present_N, size)
            return sums["loss"] / jnp.maximum(count, 1.0), sums | {"parts": jnp.float32(1)}

        trained = {group: state.params[group] for group in objective.groups}
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        return sums, grads

    with jax.named_scope("update"):
        sums, grads = _sum_parts(setup, objective, batch)(batch, run, _add)
        grads, norm = clip_by_global_norm(grads, hparams.max_grad_norm)
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        rates = optimisers(setup.config, hparams, state.step)._asdict()
        params, opt_state = dict(state.params), dict(state.opt_state)
        for group in objective.groups:
            transform, rate = rates[group]
            params[group], opt_state[group] = apply_if(
                finite & (count > 0),
                transform,
                rate,
                state.params[group],
                state.opt_state[group],
                grads[group],
            )
    nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
    tokens = objective.tokens(batch).sum().astype(jnp.float32)
    metrics = {
        "lr": rates["policy"][1],
        "grad_norm": norm,
        "tokens": tokens,
        "tokens_total": state.tokens + tokens,
        "update/parts": sums.pop("parts"),
        "update/skipped_nonfinite": 1.0 - finite,
        "update/nonfinite_in_row": nonfinite.astype(jnp.float32),
    }
    state = state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        moments=jax.tree.map(jnp.zeros_like, state.moments),  # of the weights before this step
        nonfinite=nonfinite,
        tokens=state.tokens + tokens,
    )
    return state, means(sums, count) | metrics


def tuning_sums(
    setup: Setup, objective: Objective, params: PyTree, frozen: PyTree, batch: PyTree
) -> Sums:
    """The objective's sums over a batch, and its `count`, without a step: for held-out rows."""
    params = assemble(frozen, params)
    run = lambda rows, present_N=None, size=None: objective.sums(
        setup, params, rows, present_N, size
    )
    sums = _sum_parts(setup, objective, batch)(batch, run, _add)
    return sums | {"count": objective.count(batch).astype(jnp.float32)}


def means(sums: Sums, count) -> Sums:
    return {name: x / jnp.maximum(count, 1.0) for name, x in sums.items()}


def _sum_parts(setup: Setup, objective: Objective, batch: PyTree) -> SumParts:
    if setup.config.ppo.token_sizes is None:
        return functools.partial(sum_over_rows, setup.config.ppo.microbatches)
    return functools.partial(sum_over_tokens, objective.recipe(setup, batch), objective.tokens)


def _add(sums, more):
    return jax.tree.map(jnp.add, sums, more)
