"""Losses against loops over tokens in float64, their gradients against finite differences of those
loops, and the properties the update leans on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_oracle import (
    AGGREGATES,
    B,
    T,
    as_jax,
    finite_difference,
    grad_of,
    random_policy_case,
    random_value_case,
    slow_aggregate,
    slow_policy_loss,
    slow_value_loss,
)
from ppo_jax.losses import merge_metrics, policy_loss, value_loss

NO_CLIP = float("inf")

POLICY_OPTIONS = [
    (0.2, 0.2, None, None),
    (0.1, 0.28, None, None),
    (NO_CLIP, NO_CLIP, None, None),
    (NO_CLIP, 0.2, 1.5, None),
    (0.2, 0.2, 1.3, None),
    (0.2, 0.2, NO_CLIP, None),
    (0.3, 0.4, 2.0, 0.5),
    (0.2, NO_CLIP, None, 0.1),
]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("low", "high", "dual", "clamp"), POLICY_OPTIONS)
def test_policy_loss_and_gradient(low, high, dual, clamp, aggregate):
    options = {"clip_low": low, "clip_high": high, "dual_clip": dual, "log_ratio_clamp": clamp}
    for seed in range(3):
        case = random_policy_case(seed)
        new, old, advantages, mask = case
        rest = (old, advantages, mask, low, high, dual, clamp, aggregate)
        slow = lambda x, rest=rest: slow_policy_loss(x, *rest)
        (loss, _), gradient = grad_of(policy_loss, as_jax(*case), aggregate=aggregate, **options)
        np.testing.assert_allclose(loss, slow(new), atol=1e-6)
        np.testing.assert_allclose(gradient, finite_difference(slow, new), atol=1e-6)


@pytest.mark.parametrize("clip", [0.2, 0.05, 1.0, NO_CLIP, None])
def test_value_loss_and_gradient(clip):
    for seed in range(6):
        case = random_value_case(seed)
        values, old, returns, mask = case
        slow = lambda x, rest=(old, returns, mask, clip): slow_value_loss(x, *rest)
        (loss, metrics), gradient = grad_of(value_loss, as_jax(*case), clip=clip)
        np.testing.assert_allclose(loss, slow(values), rtol=1e-5)
        np.testing.assert_allclose(gradient, finite_difference(slow, values), atol=1e-6)
        error = slow_aggregate((values - returns) ** 2, mask, "token-mean")
        np.testing.assert_allclose(metrics["error"], error, rtol=1e-5)
        near = values if clip is None else np.clip(values, old - clip, old + clip)
        clipped = ((near - returns) ** 2 > (values - returns) ** 2).astype(float)
        expected = slow_aggregate(clipped, mask, "token-mean")
        np.testing.assert_allclose(metrics["clipfrac"], expected, atol=1e-6)


@pytest.mark.parametrize("clamp", [None, 0.3])
def test_policy_metrics(clamp):
    for seed in range(10):
        new, old, advantages, mask = case = random_policy_case(seed)
        _, parts = policy_loss(*as_jax(*case), log_ratio_clamp=clamp)
        metrics = merge_metrics({name: x[None] for name, x in parts.items()})
        real = mask > 0
        log_ratio = (new - old)[real]
        ratio = np.exp(log_ratio if clamp is None else np.clip(log_ratio, -clamp, clamp))
        a = advantages[real]
        expected = {
            "approxkl": 0.5 * np.mean(log_ratio**2),
            "clipfrac": np.mean(-a * np.clip(ratio, 0.8, 1.2) > -a * ratio),
            "ratio": ratio.mean(),
            "ratio_var": ratio.var(),
            "ratio_max_dev": np.abs(ratio - 1).max(),
        }
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_ratio_variance_near_one_does_not_cancel():
    rng = np.random.default_rng(0)
    deviation = 1e-4 * rng.normal(size=(B, T))
    zeros, ones = jnp.zeros((B, T)), jnp.ones((B, T))
    _, parts = policy_loss(jnp.asarray(deviation, jnp.float32), zeros, ones, ones)
    variance = merge_metrics({name: x[None] for name, x in parts.items()})["ratio_var"]
    np.testing.assert_allclose(variance, np.exp(deviation).var(), rtol=2e-3)


def test_same_policy_has_ratio_one_and_the_plain_policy_gradient():
    new, _, advantages, mask = random_policy_case(0)
    arrays = as_jax(new, new, advantages, mask)
    (loss, metrics), gradient = grad_of(policy_loss, arrays)
    expected = -slow_aggregate(advantages, mask, "token-mean")
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    np.testing.assert_allclose(gradient, -advantages * mask / mask.sum(), atol=1e-6)
    assert metrics["ratio"] == 1
    assert metrics["approxkl"] == metrics["clipfrac"] == metrics["ratio_max_dev"] == 0


def test_dual_clip_by_hand():
    log_ratio = jnp.log(jnp.asarray([[5.0, 5.0, 2.0, 0.1]]))
    advantages = jnp.asarray([[-1.0, 1.0, -1.0, -1.0]])
    ones, zeros = jnp.ones((1, 4)), jnp.zeros((1, 4))
    options = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    (loss, _), gradient = grad_of(policy_loss, (log_ratio, zeros, advantages, ones), **options)
    # bounded at 3; clipped at 1.2; below the bound, left alone; clipped from below at 0.8
    np.testing.assert_allclose(loss, (3.0 - 1.2 + 2.0 + 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, 0.0, 0.5, 0.0]], atol=1e-6)


def test_infinite_clips_are_no_clip_and_the_same_program():
    traces = []

    @jax.jit
    def policy(arrays, clip):
        traces.append("policy")
        fn = lambda first, *rest: policy_loss(first, *rest, clip_low=clip, clip_high=clip)
        return jax.value_and_grad(fn, has_aux=True)(*arrays)

    @jax.jit
    def value(arrays, clip):
        traces.append("value")
        fn = lambda first, *rest: value_loss(first, *rest, clip=clip)
        return jax.value_and_grad(fn, has_aux=True)(*arrays)

    for seed in range(10):
        new, old, advantages, mask = case = random_policy_case(seed, spread=2.0)
        (loss, metrics), gradient = policy(as_jax(*case), NO_CLIP)
        surrogate = -advantages * np.exp(new - old) * mask
        np.testing.assert_allclose(loss, surrogate.sum() / mask.sum(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient, surrogate / mask.sum(), rtol=1e-4, atol=1e-6)
        assert metrics["clipfrac"] == 0
        wide = policy(as_jax(*case), 1e30)
        assert wide[0][0] == loss and np.array_equal(wide[1], gradient)
        assert policy(as_jax(*case), 0.2)[0][1]["clipfrac"] > 0

        case = random_value_case(seed)
        (loss, _), gradient = value(as_jax(*case), NO_CLIP)
        (plain_loss, _), plain_gradient = grad_of(value_loss, as_jax(*case), clip=None)
        assert loss == plain_loss and np.array_equal(gradient, plain_gradient)
        assert value(as_jax(*case), 0.2)[0][0] > loss
    assert sorted(traces) == ["policy", "value"]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_entries_are_never_read(garbage):
    for seed in range(4):
        case = random_policy_case(seed)
        for aggregate in AGGREGATES:
            options = {"dual_clip": 2.0, "log_ratio_clamp": 5.0, "aggregate": aggregate}
            clean = grad_of(policy_loss, as_jax(*case), **options)
            dirty = grad_of(policy_loss, as_jax(*case, garbage=garbage), **options)
            jax.tree.map(np.testing.assert_array_equal, dirty, clean)
            assert np.all(np.asarray(clean[1])[case[-1] == 0] == 0)
        case = random_value_case(seed)
        clean = grad_of(value_loss, as_jax(*case))
        dirty = grad_of(value_loss, as_jax(*case, garbage=garbage))
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_no_real_token_gives_zero_loss_and_gradient(aggregate):
    new, old, advantages, _ = random_policy_case(0)
    arrays = as_jax(new, old, advantages, np.zeros((B, T)), garbage=np.nan)
    for denominator in (None, 0.0, 17.0):
        options = {"aggregate": aggregate, "denominator": denominator}
        (loss, metrics), gradient = grad_of(policy_loss, arrays, **options)
        assert loss == 0 and not np.any(gradient)
        assert all(value == 0 for value in metrics.values())
        (loss, metrics), gradient = grad_of(value_loss, arrays, denominator=denominator)
        assert loss == 0 and not np.any(gradient)
        assert all(value == 0 for value in metrics.values())
