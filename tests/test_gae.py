"""GAE against the O(T^2) sum of its definition in float64, over the gathered real tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from ppo_jax.gae import compute_gae

B, T = 6, 9


def slow_gae(rewards, values, mask, gamma, lam, bootstrap=None):
    """A_i = sum_j (prod_{i<=k<j} gamma_k lam) (r_j + gamma_j V_{j+1} - V_j) over real tokens."""
    rows, width = rewards.shape
    gamma = np.broadcast_to(np.asarray(gamma, float), rewards.shape)
    advantages, returns = np.zeros((rows, width)), np.zeros((rows, width))
    for b in range(rows):
        real = np.flatnonzero(mask[b])
        after = [*values[b, real], 0.0 if bootstrap is None else bootstrap[b]]
        for i, t in enumerate(real):
            for j in range(i, len(real)):
                weight = np.prod(gamma[b, real[i:j]] * lam)
                delta = rewards[b, real[j]] + gamma[b, real[j]] * after[j + 1] - after[j]
                advantages[b, t] += weight * delta
            returns[b, t] = advantages[b, t] + values[b, t]
    return advantages, returns


def random_case(seed):
    """Rewards, values, a mask whose rows are empty, single, full, a prefix, a suffix and holed."""
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, B, T)).astype(np.float32).astype(float)
    mask = np.zeros((B, T))
    mask[1, rng.integers(T)] = 1
    mask[2] = 1
    mask[3, : rng.integers(2, T)] = 1
    mask[4, rng.integers(1, T) :] = 1
    mask[5] = rng.random(T) < 0.5
    bootstrap = rng.normal(size=B).astype(np.float32).astype(float)
    gamma_BT = (rng.uniform(0.8, 1.0, (B, T)) * (rng.random((B, T)) < 0.7)).astype(np.float32)
    return rewards, values, mask, gamma_BT.astype(float), bootstrap


def gae(rewards, values, mask, gamma, lam, bootstrap=None, fn=compute_gae, garbage=0.0):
    real = mask > 0
    out = fn(
        jnp.asarray(np.where(real, rewards, garbage), jnp.float32),
        jnp.asarray(np.where(real, values, garbage), jnp.float32),
        jnp.asarray(mask, jnp.float32),
        gamma=jnp.asarray(gamma, jnp.float32),
        lam=lam,
        bootstrap_B=None if bootstrap is None else jnp.asarray(bootstrap, jnp.float32),
    )
    return tuple(np.asarray(x, float) for x in out)


def assert_same(actual, expected, atol=2e-5):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=atol)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("bootstrapped", [True, False])
@pytest.mark.parametrize("gamma_kind", ["one", "scalar", "array"])
def test_matches_the_float64_sum(jit, bootstrapped, gamma_kind):
    fn = jax.jit(compute_gae) if jit else compute_gae
    for seed in range(40 if jit else 4):
        rewards, values, mask, gamma_BT, bootstrap = random_case(seed)
        gamma = {"one": 1.0, "scalar": 0.93, "array": gamma_BT}[gamma_kind]
        for lam in (0.0, 0.3, 0.95, 1.0):
            args = (rewards, values, mask, gamma, lam, bootstrap if bootstrapped else None)
            actual = gae(*args, fn=fn)
            assert_same(actual, slow_gae(*args))
            assert all(np.all(x[mask == 0] == 0) for x in actual)


def test_lambda_one_gives_returns_minus_values():
    for seed in range(20):
        rewards, values, mask, gamma_BT, bootstrap = random_case(seed)
        advantages, returns = gae(rewards, values, mask, gamma_BT, 1.0, bootstrap)
        expected = np.zeros((B, T))
        for b in range(B):
            after = bootstrap[b]
            for t in reversed(np.flatnonzero(mask[b])):
                after = expected[b, t] = rewards[b, t] + gamma_BT[b, t] * after
        assert_same((advantages, returns), (expected - values * mask, expected))


def test_lambda_zero_gives_the_td_error():
    for seed in range(20):
        rewards, values, mask, gamma_BT, bootstrap = random_case(seed)
        advantages, _ = gae(rewards, values, mask, gamma_BT, 0.0, bootstrap)
        for b in range(B):
            real = np.flatnonzero(mask[b])
            after = np.append(values[b, real], bootstrap[b])[1:]
            expected = rewards[b, real] + gamma_BT[b, real] * after - values[b, real]
            np.testing.assert_allclose(advantages[b, real], expected, atol=1e-5)


def test_by_hand():
    advantages, returns = gae(
        np.array([[1.0, 9.0, 2.0]]), np.array([[0.5, 9.0, 1.0]]), np.array([[1, 0, 1]]), 0.5, 0.5
    )
    # last: 2 - 1 = 1; first: 1 + 0.5 * 1 - 0.5 = 1, + 0.25 * 1
    assert_same((advantages, returns), ([[1.25, 0, 1.0]], [[1.75, 0, 2.0]]))


def test_masked_columns_anywhere_change_nothing():
    fn = jax.jit(compute_gae)
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        rewards, values, mask, gamma_BT, bootstrap = random_case(seed)
        columns = np.sort(rng.choice(T + 4, T, replace=False))

        def widen(x, fill, columns=columns):
            wide = np.full((B, T + 4), fill)
            wide[:, columns] = x
            return wide

        narrow = gae(rewards, values, mask, gamma_BT, 0.9, bootstrap, fn=fn)
        wide_args = widen(rewards, 7.0), widen(values, -7.0), widen(mask, 0.0), widen(gamma_BT, 0.1)
        wide = gae(*wide_args, 0.9, bootstrap, fn=fn)
        assert_same([x[:, columns] for x in wide], narrow, atol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_slots_are_never_read(garbage):
    for seed in range(10):
        rewards, values, mask, gamma_BT, bootstrap = random_case(seed)
        clean = gae(rewards, values, mask, gamma_BT, 0.9, bootstrap)
        gamma_BT = np.where(mask > 0, gamma_BT, garbage)
        assert_same(gae(rewards, values, mask, gamma_BT, 0.9, bootstrap, garbage=garbage), clean, 0)


def test_zero_gamma_closes_an_episode_inside_a_row():
    """Two episodes side by side in a row = the two episodes in rows of their own."""
    rng = np.random.default_rng(0)
    for first in range(1, 8):
        rewards, values = rng.normal(size=(2, 1, 8))
        gamma_BT = np.full((1, 8), 0.9)
        gamma_BT[0, first - 1] = 0.0
        joined = gae(rewards, values, np.ones((1, 8)), gamma_BT, 0.8)
        for part in (slice(0, first), slice(first, 8)):
            alone = gae(rewards[:, part], values[:, part], np.ones_like(rewards[:, part]), 0.9, 0.8)
            assert_same([x[:, part] for x in joined], alone, atol=1e-5)


def test_truncation_inside_a_row_is_a_bootstrap():
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 1, 6))
    gamma_BT, final_value = np.full((1, 6), 0.9), 2.5
    gamma_BT[0, 3] = 0.0
    inside = rewards.copy()
    inside[0, 3] += 0.9 * final_value
    joined = gae(inside, values, np.ones((1, 6)), gamma_BT, 0.8)
    alone = gae(
        rewards[:, :4], values[:, :4], np.ones((1, 4)), 0.9, 0.8, bootstrap=np.array([final_value])
    )
    np.testing.assert_allclose(joined[0][:, :4], alone[0], atol=1e-5)


def test_gamma_and_lambda_are_traced_and_vmapped():
    rewards, values, mask, _, _ = random_case(3)
    traces = []

    @jax.jit
    def fn(gamma, lam):
        traces.append(1)
        arrays = (jnp.asarray(x, jnp.float32) for x in (rewards, values, mask))
        return compute_gae(*arrays, gamma=gamma, lam=lam)

    for gamma, lam in [(1.0, 0.95), (0.9, 0.5), (0.0, 1.0)]:
        assert_same(fn(gamma, lam), slow_gae(rewards, values, mask, gamma, lam))
    assert len(traces) == 1
    lams = jnp.asarray([0.0, 0.5, 1.0])
    swept, _ = jax.vmap(functools.partial(fn, jnp.float32(0.9)))(lams)
    for lam, advantages in zip(lams, swept, strict=True):
        expected, _ = slow_gae(rewards, values, mask, 0.9, float(lam))
        np.testing.assert_allclose(advantages, expected, atol=2e-5)


def test_integer_rewards_are_rejected_by_the_type_check_and_never_truncate():
    ones = jnp.ones((1, 3))
    checked = jaxtyped(compute_gae, typechecker=beartype)
    with pytest.raises(Exception, match="rewards_BT"):
        checked(jnp.ones((1, 3), jnp.int32), ones, ones, gamma=1.0, lam=1.0)
    with pytest.raises(Exception, match="values_BT"):
        checked(ones, jnp.ones((1, 4)), ones, gamma=1.0, lam=1.0)
    advantages, returns = checked(0.3 * ones, 0 * ones, ones, gamma=1, lam=0.5)
    assert advantages.dtype == returns.dtype == jnp.float32


def test_half_precision_values_are_accumulated_in_float32():
    rewards, values = jnp.full((1, 64), 0.01), jnp.full((1, 64), 1.0, jnp.bfloat16)
    advantages, returns = compute_gae(rewards, values, jnp.ones((1, 64)), gamma=1.0, lam=1.0)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(returns[0, 0], 0.64, rtol=1e-5)
