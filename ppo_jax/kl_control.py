"""The adaptive KL coefficient: a controller on its logarithm."""

import jax.numpy as jnp
from jax import Array

from ppo_jax.config import Config, HParams
from ppo_jax.types import TrainState

Scalar = Array | float

INITIAL_KL_ERROR = -1.0  # the KL of a policy that still is the reference


def kl_relative_error(kl: Scalar, target: Scalar) -> Array:
    """kl / target - 1: 0 on target, -1 at a KL of 0. Both in nats a sequence."""
    return jnp.asarray(kl) / target - 1.0


def update_kl_coef(
    kl_coef: Scalar,
    kl_error_prev: Scalar,
    kl: Scalar,
    *,
    target: Scalar,
    gain: Scalar,
    max_step: Scalar,
    damping: Scalar,
) -> tuple[Array, Array]:
    """The next coefficient and the error e to hand to the next call (first: INITIAL_KL_ERROR).

        log coef += gain * clip(e, ±max_step) + damping * (clip(e, ±1) - clip(e_prev, ±1))

    The first term is the controller of https://arxiv.org/abs/1909.08593 (its 1 + x is exp(x) to
    first order); it answers where the KL is. The second makes it a PI controller in velocity form
    and answers where the KL goes: a rising KL raises the coefficient before it passes the target.
    A KL that is not finite leaves both as they are.
    """
    error = kl_relative_error(kl, target)
    step = gain * jnp.clip(error, -max_step, max_step)
    step += damping * (jnp.clip(error, -1.0, 1.0) - jnp.clip(kl_error_prev, -1.0, 1.0))
    finite = jnp.isfinite(error)
    return (
        jnp.where(finite, kl_coef * jnp.exp(step), kl_coef),
        jnp.where(finite, error, kl_error_prev),
    )


def control_kl(config: Config, hparams: HParams, state: TrainState, kl: Array) -> TrainState:
    """The state with the coefficient of the next iteration, after one whose KL was `kl` nats."""
    if config.reward.kl_controller == "fixed" or hparams.kl_target is None:
        return state
    kl_coef, kl_error = update_kl_coef(
        state.kl_coef,
        state.kl_error,
        kl,
        target=hparams.kl_target,
        gain=hparams.kl_gain,
        max_step=hparams.kl_max_step,
        damping=hparams.kl_damping,
    )
    return state._replace(kl_coef=kl_coef, kl_error=kl_error)
