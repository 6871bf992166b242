"""Critic-free estimators against loops over prompts, samples and tokens in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.estimators import group_mean, reinforce, rloo

B, T = 12, 7


def random_case(seed, *, empty_rows=False):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(B, T)).astype(np.float32).astype(float)
    mask = (rng.random((B, T)) < 0.6).astype(float)
    mask[:, 0] = 1
    if empty_rows:
        mask[rng.integers(B, size=5)] = 0
    return rewards, mask


def call(fn, rewards, mask, **options):
    rewards_BT = jnp.asarray(np.where(mask > 0, rewards, np.nan), jnp.float32)
    outputs = fn(rewards_BT, jnp.asarray(mask, jnp.float32), **options)
    outputs = [np.asarray(x, float) for x in outputs]
    assert all(np.all(x[mask == 0] == 0) for x in outputs)
    return outputs


def row_returns(rewards, mask):
    return [sum(r for r, m in zip(rewards[b], mask[b], strict=True) if m) for b in range(B)]


@pytest.mark.parametrize("samples", [2, 3, 4, 12])
def test_rloo(samples):
    for seed in range(20):
        rewards, mask = random_case(seed)
        totals = row_returns(rewards, mask)
        advantages, returns = call(rloo, rewards, mask, samples_per_prompt=samples)
        for b in range(B):
            start = b // samples * samples
            others = [totals[i] for i in range(start, start + samples) if i != b]
            expected = totals[b] - sum(others) / len(others)
            np.testing.assert_allclose(advantages[b], expected * mask[b], atol=1e-5)
            np.testing.assert_allclose(returns[b], totals[b] * mask[b], atol=1e-5)


@pytest.mark.parametrize("samples", [2, 3, 4, 12])
@pytest.mark.parametrize("scale", [True, False])
def test_group_mean(samples, scale):
    for seed in range(20):
        rewards, mask = random_case(seed)
        totals = row_returns(rewards, mask)
        options = {"samples_per_prompt": samples, "scale": scale, "eps": 1e-3}
        advantages, returns = call(group_mean, rewards, mask, **options)
        for b in range(B):
            start = b // samples * samples
            group = np.array(totals[start : start + samples])
            expected = totals[b] - group.mean()
            if scale:
                expected /= group.std(ddof=1) + 1e-3
            np.testing.assert_allclose(advantages[b], expected * mask[b], atol=1e-4)
            np.testing.assert_allclose(returns[b], totals[b] * mask[b], atol=1e-5)


def test_empty_rows_do_not_count_in_their_group():
    for seed in range(30):
        rewards, mask = random_case(seed, empty_rows=True)
        totals, present = row_returns(rewards, mask), mask.any(axis=1)
        loo, _ = call(rloo, rewards, mask, samples_per_prompt=4)
        centred, _ = call(group_mean, rewards, mask, samples_per_prompt=4, scale=False)
        scaled, _ = call(group_mean, rewards, mask, samples_per_prompt=4)
        for b in np.flatnonzero(present):
            start = b // 4 * 4
            rows = [i for i in range(start, start + 4) if present[i]]
            others = [totals[i] for i in rows if i != b]
            expected = totals[b] - np.mean(others) if others else 0.0
            np.testing.assert_allclose(loo[b], expected * mask[b], atol=1e-5)
            group = np.array([totals[i] for i in rows])
            expected = totals[b] - group.mean()
            np.testing.assert_allclose(centred[b], expected * mask[b], atol=1e-5)
            std = group.std(ddof=1) if len(group) > 1 else 0.0
            np.testing.assert_allclose(scaled[b], expected / (std + 1e-4) * mask[b], atol=2e-3)


def test_group_advantages_are_centred_and_rloo_is_a_multiple_of_them():
    rewards, mask = random_case(5)
    loo, _ = call(rloo, rewards, mask, samples_per_prompt=4)
    centred, _ = call(group_mean, rewards, mask, samples_per_prompt=4, scale=False)
    np.testing.assert_allclose(centred[:, 0].reshape(-1, 4).sum(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(loo, centred * 4 / 3, atol=1e-5)


def test_equal_rewards_give_no_signal():
    ones = jnp.ones((4, 3))
    for fn in (rloo, group_mean):
        advantages, _ = fn(ones, ones, samples_per_prompt=2)
        np.testing.assert_array_equal(advantages, np.zeros((4, 3)))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_reinforce(gamma):
    for seed in range(20):
        rewards, mask = random_case(seed, empty_rows=seed % 2 == 0)
        advantages, returns = call(reinforce, rewards, mask, gamma=gamma)
        expected = np.zeros((B, T))
        for b in range(B):
            real = np.flatnonzero(mask[b])
            for i, t in enumerate(real):
                expected[b, t] = sum(gamma**k * rewards[b, u] for k, u in enumerate(real[i:]))
        baseline = expected[mask > 0].mean()
        np.testing.assert_allclose(returns, expected, atol=1e-5)
        np.testing.assert_allclose(advantages, (expected - baseline) * mask, atol=1e-5)


def test_nothing_real_gives_zeros():
    rewards, mask = np.ones((B, T)), np.zeros((B, T))
    for advantages, returns in (
        call(rloo, rewards, mask, samples_per_prompt=3),
        call(group_mean, rewards, mask, samples_per_prompt=3),
        call(reinforce, rewards, mask, gamma=1.0),
    ):
        assert not advantages.any() and not returns.any()


@pytest.mark.parametrize("samples", [1, 5])
def test_samples_that_make_no_groups(samples):
    ones = jnp.ones((6, 2))
    for fn in (rloo, group_mean):
        with pytest.raises(ConfigError, match=f"samples_per_prompt: got {samples} for 6 rows"):
            fn(ones, ones, samples_per_prompt=samples)
