"""Truncated importance weights, and the 8-bit sampler whose gap they correct."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import replace
from ppo_jax.losses import importance_weights, policy_loss
from ppo_jax.step import training_rows
from ppo_jax.types import Rollout, Scored
from step_builders import BASE, case, leaves, run, traced


def random_logprobs(seed: int, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    old, sampler = rng.normal(-2.0, 1.5, size=(2, *shape))
    mask = (rng.random(shape) < 0.7).astype(np.float32)
    return jnp.float32(old), jnp.float32(sampler), jnp.asarray(mask)


@pytest.mark.parametrize("cap", [1.0, 1.7, 5.0, np.inf])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_the_bounded_ratio(seed, cap):
    old, sampler, mask = random_logprobs(seed)
    weights = np.asarray(importance_weights(old, sampler, mask, cap=cap))
    for index in np.ndindex(*old.shape):
        ratio = np.exp(np.float64(old[index]) - np.float64(sampler[index]))
        expected = min(ratio, cap) if mask[index] else 1.0
        np.testing.assert_allclose(weights[index], expected, rtol=1e-5)
    if 1.0 < cap < 5.0:
        assert (weights[np.asarray(mask) > 0] < cap * 0.99).any() and (weights > cap * 0.99).any()


def test_padding_is_not_read():
    old, sampler, mask = random_logprobs(9)
    spoilt = jnp.where(mask > 0, old, jnp.inf)
    np.testing.assert_array_equal(
        importance_weights(spoilt, sampler, mask, cap=2.0),
        importance_weights(old, sampler, mask, cap=2.0),
    )


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_weighting_the_advantage_weights_the_clipped_loss(dual_clip):
    """The step weights advantages; the published form weights each token's clipped loss."""
    old, new, mask = random_logprobs(3)
    sampler = random_logprobs(4)[0]
    advantages = np.random.default_rng(5).normal(size=old.shape).astype(np.float32)
    weights = np.asarray(importance_weights(old, sampler, mask, cap=2.0))
    loss, _ = policy_loss(
        new, old, jnp.asarray(advantages * weights), mask, dual_clip=dual_clip, clip_high=0.3
    )
    total = 0.0
    for index in np.argwhere(mask > 0):
        n, o, a, w = (np.float64(x[tuple(index)]) for x in (new, old, advantages, weights))
        ratio = np.exp(n - o)
        token = max(-a * ratio, -a * np.clip(ratio, 0.8, 1.3))
        if dual_clip is not None and a < 0:
            token = min(token, -a * dual_clip)
        total += w * token
    np.testing.assert_allclose(loss, total / mask.sum(), rtol=1e-5)


@pytest.mark.parametrize("cap, factor", [(None, 1.0), (2.0, 2.0), (10.0, 3.0)])
def test_the_step_weights_its_whitened_advantages(cap, factor):
    """Where the trainer finds each token three times as likely as the sampler did."""
    built = case(BASE)
    rng = np.random.default_rng(7)
    B, T = 8, 6
    old, rewards, values = jnp.float32(rng.normal(-2.0, 0.5, size=(3, B, T)))
    lengths = jnp.asarray(rng.integers(1, T + 1, size=B), jnp.int32)
    mask = (jnp.arange(T)[None] < lengths[:, None]).astype(jnp.float32)
    ids = jnp.ones((B, T), jnp.int32)
    gap = float(np.log(3.0))
    ended, steps = lengths < T, jnp.zeros(B)
    rollout = Rollout(ids, ids > 0, ids, mask, lengths, ended, old - gap, None, None, steps)
    scored = Scored(old, values, None, old, None, None)
    learnt = lambda cap: (
        training_rows(
            built.setup,
            replace(BASE, **{"hparams.tis_cap": cap}).hparams,
            rewards,
            scored,
            rollout,
            mask,
        ).advantages_BT
    )
    assert abs(float((learnt(None) * mask).sum())) < 1e-4 and np.abs(learnt(None)).max() > 0.5
    np.testing.assert_allclose(learnt(cap), factor * learnt(None), rtol=1e-5)


def test_without_a_gap_the_weights_change_nothing():
    hparams = traced(BASE.hparams)
    plain, history, _ = run(case(BASE), 1, hparams)
    weighted, weighted_history, _ = run(case(replace(BASE, **{"hparams.tis_cap": 2.0})), 1)
    assert abs(weighted_history[0]["rollout/tis_weight"] - 1.0) < 1e-5
    assert weighted_history[0]["rollout/tis_capped"] == 0.0
    np.testing.assert_allclose(
        weighted_history[0]["grad_norm/policy"], history[0]["grad_norm/policy"], rtol=1e-4
    )
    for name, leaf in leaves(plain.params).items():
        np.testing.assert_allclose(leaves(weighted.params)[name], leaf, atol=2e-4)


def test_eight_bit_sampler_keeps_the_scoring_pass_exact_and_shows_its_gap():
    changes = {"rollout.weights": "int8", "hparams.tis_cap": 1.02}
    _, history, rollouts = run(case(replace(BASE, **changes)), 2)
    _, exact, _ = run(case(BASE), 2)
    for metrics, same in zip(history, exact, strict=True):
        assert metrics["val/ratio_first_max_dev"] <= 1e-5  # against the scoring pass, as ever
        assert metrics["rollout/logprob_gap"] > 100 * same["rollout/logprob_gap"]
        assert 1e-4 < metrics["rollout/logprob_gap"] < 0.1
        assert 0.9 < metrics["rollout/tis_weight"] < 1.02
    assert any(metrics["rollout/tis_capped"] > 0 for metrics in history)
    assert abs(history[0]["objective/kl"]) <= 1e-6 * rollouts[0].mask_BT.sum(1).mean()


@pytest.mark.parametrize("weights", ["compute", "int8"])
def test_without_a_cap_there_is_no_metric(weights):
    _, history, _ = run(case(replace(BASE, **{"rollout.weights": weights})), 1)
    assert not [name for name in history[0] if "tis" in name]
