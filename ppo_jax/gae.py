"""Generalised advantage estimation over padded responses."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike


def compute_gae(
    rewards_BT: Float[Array, "B T"],
    values_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    gamma: Float[Array, "B T"] | ScalarLike,
    lam: ScalarLike,
    bootstrap_B: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages and returns, https://arxiv.org/abs/1506.02438 (eq. 16).

        delta_t = r_t + gamma_t V_{t+1} - V_t
        A_t = delta_t + gamma_t lam A_{t+1},    R_t = A_t + V_t

    t + 1 is the next *real* token: masked positions give 0 and neither decay nor break the chain
    through them, and what they hold, NaN included, is never read. V after the last real token is
    `bootstrap_B`, else 0. `gamma_BT` = gamma (1 - done) closes an episode inside a row; a
    truncation inside a row adds gamma V(s_T) to its reward.
    """
    chex.assert_equal_shape([rewards_BT, values_BT, mask_BT])  # never broadcast one against another
    real_BT = mask_BT > 0
    dtype = jnp.promote_types(jnp.result_type(rewards_BT, values_BT), jnp.float32)

    def scan_input(x: Array) -> Array:  # zeros where masked, time first
        return jnp.where(real_BT, x, 0).astype(dtype).T

    def step(carry, inputs):
        next_value_B, next_advantage_B = carry
        reward_B, value_B, gamma_B, real_B = inputs
        delta_B = reward_B + gamma_B * next_value_B - value_B
        advantage_B = delta_B + gamma_B * lam * next_advantage_B
        carry = (
            jnp.where(real_B, value_B, next_value_B),
            jnp.where(real_B, advantage_B, next_advantage_B).astype(dtype),
        )
        return carry, jnp.where(real_B, advantage_B, 0).astype(dtype)

    zeros_B = jnp.zeros(rewards_BT.shape[0], dtype)
    start_B = zeros_B if bootstrap_B is None else bootstrap_B.astype(dtype)
    gamma_BT = jnp.broadcast_to(jnp.asarray(gamma, dtype), rewards_BT.shape)
    inputs_TB = (scan_input(rewards_BT), scan_input(values_BT), scan_input(gamma_BT), real_BT.T)
    _, advantages_TB = jax.lax.scan(step, (start_B, zeros_B), inputs_TB, reverse=True)
    advantages_BT = advantages_TB.T
    return advantages_BT, jnp.where(real_BT, advantages_BT + values_BT, 0).astype(dtype)
