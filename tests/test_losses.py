"""Losses against loops over tokens in float64, their gradients against finite differences of those
loops, and the properties the update leans on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.losses import (
    aggregate_loss,
    loss_denominator,
    merge_metrics,
    policy_loss,
    value_loss,
)

B, T = 8, 6
AGGREGATES = ("token-mean", "seq-mean", "seq-sum-norm")
NO_CLIP = float("inf")


def random_mask(rng):
    """Rows that are empty, single, full, a prefix, and holed."""
    mask = (rng.random((B, T)) < 0.6).astype(float)
    mask[0] = 0
    mask[1] = np.arange(T) == rng.integers(T)
    mask[2] = 1
    mask[3] = np.arange(T) < rng.integers(2, T)
    return mask


def random_policy_case(seed, spread=0.4):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(B, T))
    new = old + spread * rng.normal(size=(B, T))
    arrays = (new, old, rng.normal(size=(B, T)))
    return *(x.astype(np.float32).astype(float) for x in arrays), random_mask(rng)


def random_value_case(seed):
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(3, B, T)) * np.array([1, 1, 2])[:, None, None]
    return *arrays.astype(np.float32).astype(float), random_mask(rng)


def as_jax(*arrays, garbage=None):
    *data, mask = arrays
    if garbage is not None:
        data = [np.where(mask > 0, x, garbage) for x in data]
    return [jnp.asarray(x, jnp.float32) for x in (*data, mask)]


def parts_of(arrays, parts):
    """The rows dealt into `parts` microbatches, in order."""
    split = [np.split(np.asarray(x), parts) for x in arrays]
    return [[jnp.asarray(x) for x in part] for part in zip(*split, strict=True)]


def slow_aggregate(x, mask, aggregate):
    """Lists of real tokens, one a sequence, then the mean that is asked for."""
    rows = [[x[b, t] for t in range(T) if mask[b, t]] for b in range(len(x))]
    if aggregate == "token-mean":
        tokens = [v for row in rows for v in row]
        return sum(tokens) / len(tokens) if tokens else 0.0
    if aggregate == "seq-mean":
        means = [sum(row) / len(row) for row in rows if row]
        return sum(means) / len(means) if means else 0.0
    return sum(sum(row) for row in rows) / (len(rows) * T)


def slow_policy_loss(new, old, advantages, mask, low, high, dual, clamp, aggregate):
    loss = np.zeros_like(new)
    for b, t in zip(*np.nonzero(mask), strict=True):
        log_ratio, a = new[b, t] - old[b, t], advantages[b, t]
        if clamp is not None:
            log_ratio = min(max(log_ratio, -clamp), clamp)
        ratio = np.exp(log_ratio)
        loss[b, t] = -min(a * ratio, a * min(max(ratio, 1 - low), 1 + high))
        if dual is not None and a < 0:
            loss[b, t] = min(loss[b, t], -dual * a)
    return slow_aggregate(loss, mask, aggregate)


def slow_value_loss(values, old, returns, mask, clip):
    loss = np.zeros_like(values)
    for b, t in zip(*np.nonzero(mask), strict=True):
        v, o, r = values[b, t], old[b, t], returns[b, t]
        near = v if clip is None else o + min(max(v - o, -clip), clip)
        loss[b, t] = 0.5 * max((v - r) ** 2, (near - r) ** 2)
    return slow_aggregate(loss, mask, "token-mean")


def finite_difference(fn, x, h=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        gradient[index] = (fn(x + step) - fn(x - step)) / (2 * h)
    return gradient


@functools.partial(jax.jit, static_argnames=("loss_fn", "static"))
def _grad(loss_fn, static, arrays, options):
    fn = lambda first: loss_fn(first, *arrays[1:], **dict(static), **options)
    return jax.value_and_grad(fn, has_aux=True)(arrays[0])


def grad_of(loss_fn, arrays, **options):
    """((loss, metrics), gradient of the first array); all options but `aggregate` are traced."""
    static = tuple((name, options.pop(name)) for name in ("aggregate",) if name in options)
    outcome = _grad(loss_fn, static, list(arrays), options)
    return jax.tree.map(np.asarray, outcome)


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


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_microbatches_sum_to_the_whole(aggregate, parts):
    """Parts hold unequal numbers of tokens and sequences, one of them none at all."""
    for seed in range(5):
        case = random_policy_case(seed)
        arrays = as_jax(*case)
        mask_BT = arrays[-1]
        denominator, tokens = loss_denominator(mask_BT, aggregate), loss_denominator(mask_BT)
        options = {"aggregate": aggregate, "dual_clip": 1.5}
        (loss, metrics), gradient = grad_of(policy_loss, arrays, **options)
        split = [
            grad_of(policy_loss, part, denominator=denominator, tokens=tokens, **options)
            for part in parts_of(arrays, parts)
        ]
        np.testing.assert_allclose(sum(s[0][0] for s in split), loss, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([s[1] for s in split]), gradient, atol=1e-7)
        merged = merge_metrics(jax.tree.map(lambda *x: jnp.stack(x), *(s[0][1] for s in split)))
        whole = merge_metrics({name: jnp.asarray(x)[None] for name, x in metrics.items()})
        for name in whole:
            np.testing.assert_allclose(merged[name], whole[name], rtol=1e-5, atol=1e-7)


def test_value_microbatches_sum_to_the_whole_in_any_row_order():
    for seed in range(5):
        arrays = as_jax(*random_value_case(seed))
        (loss, metrics), gradient = grad_of(value_loss, arrays)
        order = np.random.default_rng(seed).permutation(B)
        shuffled = [x[order] for x in arrays]
        tokens = loss_denominator(arrays[-1])
        split = [grad_of(value_loss, part, denominator=tokens) for part in parts_of(shuffled, 4)]
        np.testing.assert_allclose(sum(s[0][0] for s in split), loss, rtol=1e-5)
        joined = np.concatenate([s[1] for s in split])
        np.testing.assert_allclose(joined, np.asarray(gradient)[order], atol=1e-7)
        merged = merge_metrics(jax.tree.map(lambda *x: jnp.stack(x), *(s[0][1] for s in split)))
        for name in metrics:
            np.testing.assert_allclose(merged[name], metrics[name], rtol=1e-5)


def test_token_metrics_follow_a_token_denominator():
    """With token-mean, `denominator` alone makes the metrics additive too."""
    arrays = as_jax(*random_policy_case(1))
    whole = policy_loss(*arrays)[1]
    halves = [
        policy_loss(*part, denominator=loss_denominator(arrays[-1]))[1]
        for part in parts_of(arrays, 2)
    ]
    for name in ("approxkl", "clipfrac", "ratio", "ratio_sq_dev"):
        np.testing.assert_allclose(sum(h[name] for h in halves), whole[name], rtol=1e-5)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_aggregate(aggregate):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, mask = rng.normal(size=(B, T)), random_mask(rng)
        actual = aggregate_loss(*as_jax(x, mask, garbage=np.nan), aggregate)
        np.testing.assert_allclose(actual, slow_aggregate(x, mask, aggregate), atol=1e-6)
        if aggregate != "seq-sum-norm":  # whose normaliser is the width itself
            wide = [np.pad(y, ((1, 2), (3, 4))) for y in (x, mask)]
            np.testing.assert_allclose(aggregate_loss(*as_jax(*wide), aggregate), actual, atol=1e-6)


def test_denominators():
    mask_BT = jnp.asarray([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    counts = [float(loss_denominator(mask_BT, aggregate)) for aggregate in AGGREGATES]
    assert counts == [3, 2, 3]


def test_unknown_aggregate():
    mask_BT = jnp.ones((2, 2))
    fn = getattr(loss_denominator, "__wrapped__", loss_denominator)  # past the type check
    with pytest.raises(ConfigError, match="ppo.aggregate: got 'mean', expected token-mean"):
        fn(mask_BT, "mean")
