"""Two lambdas: one of the policy's advantages, one of the returns that the critic learns from."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import Config, HParams, PPOOptions, replace
from ppo_jax.errors import ConfigError
from ppo_jax.step import estimate_advantages
from ppo_jax.types import Rollout, Scored
from ppo_jax.validate import check_config
from step_builders import BASE, case, leaves, run

B, T, GAMMA = 6, 9, 0.9


def lambda_returns(rewards, values, lengths, ended, last, lam):
    """R_t = r_t + gamma ((1 - lam) V_{t+1} + lam R_{t+1}) in float64, Sutton and Barto 12.3."""
    returns = np.zeros(rewards.shape)
    for b, length in enumerate(lengths):
        following = value = 0.0 if ended[b] else last[b]
        for t in reversed(range(length)):
            following = rewards[b, t] + GAMMA * ((1 - lam) * value + lam * following)
            value = values[b, t]
            returns[b, t] = following
    return returns


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("lam, critic_lam", [(0.9, 1.0), (0.0, 0.5), (1.0, 0.0), (0.7, None)])
def test_each_has_its_own(lam, critic_lam, bootstrap):
    rng = np.random.default_rng(int(10 * lam) + bootstrap)
    rewards, values, last = (rng.normal(size=shape) for shape in ((B, T), (B, T), (B,)))
    lengths = rng.integers(1, T + 1, size=B)
    mask = jnp.asarray(np.arange(T)[None] < lengths[:, None], jnp.float32)
    ended = (lengths < T) if bootstrap else np.ones(B, bool)
    ids, old = jnp.ones((B, T), jnp.int32), jnp.zeros((B, T))
    rollout = Rollout(
        ids, ids > 0, ids, mask, jnp.asarray(lengths), jnp.asarray(ended), old, None, None,
        jnp.zeros(B),
    )  # fmt: skip
    scored = Scored(old, jnp.float32(values), jnp.float32(last), old, None, None)
    config = replace(BASE, **{"ppo.bootstrap_truncated": bootstrap})
    advantages, returns = estimate_advantages(
        case(config).setup,
        HParams(gamma=GAMMA, lam=lam, critic_lam=critic_lam),
        jnp.float32(rewards),
        scored,
        rollout,
        mask,
    )
    of = lambda lam: lambda_returns(rewards, values, lengths, ended, last, lam)
    np.testing.assert_allclose(advantages, (of(lam) - values) * mask, atol=1e-5)
    own = lam if critic_lam is None else critic_lam
    np.testing.assert_allclose(returns, of(own) * mask, atol=1e-5)


def test_without_a_critic_it_is_refused():
    config = Config(ppo=PPOOptions(advantage="reinforce"), hparams=HParams(critic_lam=1.0))
    with pytest.raises(ConfigError, match="hparams.critic_lam.* no critic; nearest valid: None"):
        check_config(config)


def test_the_critics_own_lambda_leaves_the_policys_first_step():
    """With a critic apart the policy of the first iteration does not know of it."""
    separate = replace(BASE, **{"model.critic": "separate", "hparams.lam": 0.5})
    plain, own = (
        leaves(run(case(replace(separate, **{"hparams.critic_lam": lam})), 1)[0].params)
        for lam in (None, 1.0)
    )
    for name, leaf in plain.items():
        same = np.array_equal(leaf, own[name])
        assert same if name.startswith("['policy']") else not same, name
