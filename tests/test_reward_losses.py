"""Losses of reward models against float64, and the worth of their scores against known values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.reward_losses import judge_pairs, judge_scores, pairwise_sums, scored_sums

RNG = np.random.default_rng(0)
MARGINS = np.array([0.0, 0.5, 0.0, 2.0, 1.0, 0.0, 3.0])
COUNTS = np.array([1, 1, 0, 1, 1, 1, 0], np.float32)


def slow_pairwise(scores, margins, counts):
    """-log of the logistic function, one pair after another."""
    loss = right = gap = 0.0
    for n, (margin, count) in enumerate(zip(margins, counts, strict=True)):
        difference = float(scores[2 * n]) - float(scores[2 * n + 1])
        if count:
            loss += math.log1p(math.exp(margin - difference))
            right += 0.5 if difference == 0 else float(difference > 0)
            gap += difference
    return {"loss": loss, "accuracy": right, "gap": gap}


def slow_scored(scores, targets, counts):
    rows = [(float(s) - t) for s, t, c in zip(scores, targets, counts, strict=True) if c]
    return {"loss": sum(e * e for e in rows), "error": sum(map(abs, rows))}


CASES = [(pairwise_sums, slow_pairwise, 14), (scored_sums, slow_scored, 7)]


@pytest.mark.parametrize(("ours", "slow", "size"), CASES)
def test_sums_and_gradients_are_those_of_float64(ours, slow, size):
    scores = RNG.normal(size=size).round(2)
    if size == 14:
        scores[4:6] = 0.25  # equal scores are right by half
    sums = ours(jnp.asarray(scores, jnp.float32), jnp.asarray(MARGINS, jnp.float32), COUNTS)
    expected = slow(scores, MARGINS, COUNTS)
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-6, abs=1e-6), name
    loss = lambda s: ours(s, jnp.asarray(MARGINS, jnp.float32), COUNTS)["loss"]
    grads = np.asarray(jax.grad(loss)(jnp.asarray(scores, jnp.float32)))
    for i in range(size):
        step = 1e-5 * np.eye(size)[i]
        up, down = (slow(scores + sign * step, MARGINS, COUNTS)["loss"] for sign in (1, -1))
        assert grads[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-5), i


def test_scores_far_apart_stay_finite():
    scores = jnp.asarray([1e4, -1e4, -1e4, 1e4], jnp.float32)
    zeros, ones = jnp.zeros(2), jnp.ones(2)
    sums, grads = jax.value_and_grad(lambda s: pairwise_sums(s, zeros, ones)["loss"])(scores)
    assert float(sums) == pytest.approx(2e4)
    assert np.asarray(grads).tolist() == [0.0, 0.0, -1.0, 1.0]


def test_the_worth_of_pairs():
    # σ(ln 4) = 0.8: of five such pairs four are right, which is what 0.8 promises.
    four = math.log(4)
    scores = np.array([four, 0.0] * 4 + [0.0, four])
    worth = judge_pairs(scores, np.zeros(5))
    assert worth["accuracy"] == pytest.approx(0.8) and worth["gap"] == pytest.approx(0.6 * four)
    assert worth["ece"] == pytest.approx(0.0, abs=1e-12)
    assert worth["brier"] == pytest.approx((4 * 0.2**2 + 0.8**2) / 5)
    assert worth["loss"] == pytest.approx((4 * math.log(1.25) + math.log(5)) / 5)
    # All wrong with that confidence: off by 0.8; together with sure and right ones, by shares.
    wrong = judge_pairs(np.array([0.0, four] * 5), np.zeros(5))
    assert wrong["ece"] == pytest.approx(0.8) and wrong["accuracy"] == 0.0
    both = judge_pairs(np.array([0.0, four] + [50.0, 0.0] * 3), np.zeros(4))
    assert both["ece"] == pytest.approx(0.8 / 4)
    equal = judge_pairs(np.zeros(6), np.full(3, 1.0))
    assert equal["accuracy"] == 0.5 and equal["ece"] == 0.0
    assert equal["loss"] == pytest.approx(math.log1p(math.e))


def test_two_pairs_of_one_bin_are_held_to_their_mean():
    odds = lambda p: math.log(p / (1 - p))
    scores = np.array([odds(0.71), 0.0, 0.0, odds(0.73)])
    assert judge_pairs(scores, np.zeros(2))["ece"] == pytest.approx(abs(0.5 - 0.72))


def test_the_worth_of_predicted_scores():
    targets = np.array([0.0, 1.0, 2.0, 5.0])
    worth = judge_scores(2.0 * targets + 1.0, targets)
    assert worth["correlation"] == pytest.approx(1.0)
    assert worth["error"] == pytest.approx(3.0) and worth["loss"] == pytest.approx(12.5)
    assert judge_scores(np.ones(4), targets)["correlation"] == 0.0
    noisy = RNG.normal(size=4)
    expected = np.corrcoef(noisy, targets)[0, 1]
    assert judge_scores(noisy, targets)["correlation"] == pytest.approx(expected)
