"""Critic-free advantage estimators. Each returns (advantages_BT, returns_BT), 0 where masked.

Rows are prompt-major: the `samples_per_prompt` samples of a prompt stand side by side. A row
without a real token is not a sample: it neither gets an advantage nor counts in its group.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from ppo_jax.errors import ConfigError
from ppo_jax.gae import compute_gae
from ppo_jax.masked import masked_mean

Estimate = tuple[Float[Array, "B T"], Float[Array, "B T"]]


def _group(rewards_BT: Array, mask_BT: Array, samples: int) -> tuple[Array, Array]:
    """Sequence returns and presence (1 where the row has a real token), both [prompts, samples]."""
    rows = rewards_BT.shape[0]
    if samples < 2 or rows % samples:
        raise ConfigError(
            f"rollout.samples_per_prompt: got {samples} for {rows} rows, expected a divisor of "
            f"the rows that is at least 2"
        )
    returns_B = jnp.sum(jnp.where(mask_BT > 0, rewards_BT, 0.0), axis=1)
    present_B = jnp.any(mask_BT > 0, axis=1).astype(returns_B.dtype)
    return returns_B.reshape(-1, samples), present_B.reshape(-1, samples)


def _broadcast(x: Array, mask_BT: Array) -> Array:
    """One number a row, [prompts, samples], on the real tokens of its row."""
    return jnp.where(mask_BT > 0, x.reshape(-1, 1), jnp.zeros((), x.dtype))


def rloo(
    rewards_BT: Float[Array, "B T"], mask_BT: Float[Array, "B T"], *, samples_per_prompt: int
) -> Estimate:
    """Leave-one-out REINFORCE, https://arxiv.org/abs/2402.14740.

    The return of a sequence (sum of its token rewards) minus the mean return of the other samples
    of its prompt, on every real token; 0 where no other sample is left.
    """
    returns_GN, present_GN = _group(rewards_BT, mask_BT, samples_per_prompt)
    others_GN = jnp.sum(present_GN, axis=1, keepdims=True) - present_GN
    sum_GN = jnp.sum(returns_GN * present_GN, axis=1, keepdims=True) - returns_GN
    advantages_GN = returns_GN - sum_GN / jnp.maximum(others_GN, 1.0)
    advantages_GN = jnp.where(others_GN > 0, advantages_GN, 0.0)
    return _broadcast(advantages_GN, mask_BT), _broadcast(returns_GN, mask_BT)


def group_mean(
    rewards_BT: Float[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    samples_per_prompt: int,
    scale: bool = True,
    eps: ScalarLike = 1e-4,
) -> Estimate:
    """Group-relative advantage (R - mean) / (std + eps), https://arxiv.org/abs/2402.03300.

    The standard deviation is the unbiased one, as in TRL and verl; `scale=False` leaves it out
    (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    """
    returns_GN, present_GN = _group(rewards_BT, mask_BT, samples_per_prompt)
    count_G1 = jnp.sum(present_GN, axis=1, keepdims=True)
    mean_G1 = jnp.sum(returns_GN * present_GN, axis=1, keepdims=True) / jnp.maximum(count_G1, 1.0)
    advantages_GN = (returns_GN - mean_G1) * present_GN
    if scale:
        square_G1 = jnp.sum(advantages_GN**2, axis=1, keepdims=True)
        std_G1 = jnp.sqrt(square_G1 / jnp.maximum(count_G1 - 1.0, 1.0))
        advantages_GN = advantages_GN / (std_G1 + eps)
    return _broadcast(advantages_GN, mask_BT), _broadcast(returns_GN, mask_BT)


def reinforce(
    rewards_BT: Float[Array, "B T"], mask_BT: Float[Array, "B T"], *, gamma: ScalarLike
) -> Estimate:
    """Discounted return-to-go minus its mean over all real tokens of the batch.

    The return-to-go is GAE with a critic that says 0 and lambda = 1.
    """
    returns_BT, _ = compute_gae(
        rewards_BT, jnp.zeros_like(rewards_BT), mask_BT, gamma=gamma, lam=1.0
    )
    baseline = masked_mean(returns_BT, mask_BT)
    return jnp.where(mask_BT > 0, returns_BT - baseline, 0.0), returns_BT
