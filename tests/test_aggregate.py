"""Token losses to one number: against lists of tokens, and any split sums to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loss_oracle import (
    AGGREGATES,
    B,
    T,
    as_jax,
    grad_of,
    parts_of,
    random_mask,
    random_policy_case,
    random_value_case,
    slow_aggregate,
)
from ppo_jax.errors import ConfigError
from ppo_jax.losses import (
    aggregate_loss,
    loss_denominator,
    merge_metrics,
    policy_loss,
    value_loss,
)


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
