"""Intervals over seeds against all resamples there are, written out."""

import itertools
import math

import numpy as np
import pytest

from ppo_jax.report_stats import bands, difference, mean_interval, number_of, rule

FIVE = [0.31, 0.44, 0.39, 0.80, 0.52]
NAN = float("nan")


def test_a_metric_may_have_iterations_of_its_own():
    rows = [{"step": step, "eval/scores": 2.0 * step, "x": float(step)} for step in range(2, 9)]
    assert number_of(rows, "x", (3, 6)) == pytest.approx(4.0)  # 3, 4, 5
    assert number_of(rows, "eval/scores", (0, 4)) == pytest.approx(5.0)  # 4 and 6
    assert math.isnan(number_of(rows, "x", (0, 2)))
    rows[2]["x"] = NAN
    assert math.isnan(number_of(rows, "x", (3, 6))) and number_of(rows, "x", (5, 6)) == 5.0
    assert rule("eval/scores", (3, 6)) == rule("x", (3, 6)) == "mean of iterations 3 to 5"


def every_mean(values):
    """Means of all n^n ways to draw n of them with replacement."""
    return np.array(
        [sum(drawn) / len(values) for drawn in itertools.product(values, repeat=len(values))]
    )


def ends(means):
    """The least of them that 2.5 % and 97.5 % do not exceed."""
    return [sorted(means)[math.ceil(share * len(means)) - 1] for share in (0.025, 0.975)]


def test_interval_is_that_of_all_resamples():
    found = mean_interval(FIVE)
    assert found.mean == pytest.approx(0.492) and found.n == 5
    np.testing.assert_allclose([found.low, found.high], ends(every_mean(FIVE)), atol=1e-12)


def test_interval_of_more_is_near_that_of_all_resamples():
    """All multisets of nine seeds, each with its share of the 9^9 draws."""
    values = np.random.default_rng(3).normal(size=9)
    counts = [
        np.bincount(m, minlength=9) for m in itertools.combinations_with_replacement(range(9), 9)
    ]
    shares = np.array(
        [math.factorial(9) / math.prod(map(math.factorial, c)) / 9**9 for c in counts]
    )
    means = np.array(counts) @ values / 9
    order = np.argsort(means)
    below = np.cumsum(shares[order])
    assert below[-1] == pytest.approx(1.0)
    expected = [means[order][np.searchsorted(below, q)] for q in (0.025, 0.975)]
    found = mean_interval(values)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.02)
    assert found.high - found.low > 0.5 and found == mean_interval(values)


def test_interval_of_few():
    one = mean_interval([2.0])
    assert one[0] == 2.0 and one.n == 1 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(mean_interval([]).mean) and mean_interval([]).n == 0
    two = mean_interval([1.0, 3.0])  # a quarter of all draws has the one alone
    assert two[:] == (2.0, 1.0, 3.0, 2)
    assert mean_interval([0.1] * 5)[:3] == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_intervals_hold_the_mean_as_often_as_said():
    """About 84 % of the intervals of five normal numbers."""
    draws = np.random.default_rng(5).normal(size=(1000, 5))
    held = np.mean([found.low <= 0 <= found.high for found in map(mean_interval, draws)])
    assert abs(held - 0.84) < 0.03


def test_differences_are_of_pairs_where_seeds_agree():
    base = dict(enumerate(FIVE))
    ours = {seed: value + 0.1 + 0.01 * (seed % 2) for seed, value in base.items()}
    found = difference(dict(reversed(ours.items())), base)
    gaps = [0.1, 0.11, 0.1, 0.11, 0.1]
    assert found.paired and found.n == 5 and found.mean == pytest.approx(0.104)
    np.testing.assert_allclose([found.low, found.high], ends(every_mean(gaps)), atol=1e-9)
    some = difference({**ours, 9: 7.0}, {**base, 8: -3.0})  # seeds of one alone do not count
    assert some == found


def test_differences_without_common_seeds_are_drawn_apart():
    ours, base = [1.0, 1.5, 2.5], [0.2, 0.3, 0.7, 0.4]
    found = difference(dict(enumerate(ours)), {10 + n: x for n, x in enumerate(base)})
    assert not found.paired and found.n == 3 and found.mean == pytest.approx(5 / 3 - 0.4)
    all_gaps = np.subtract.outer(every_mean(ours), every_mean(base)).ravel()
    np.testing.assert_allclose([found.low, found.high], ends(all_gaps), atol=0.05)


@pytest.mark.parametrize("base, mean", [({0: 1.0}, 1.0), ({1: 1.5}, 0.5), ({}, NAN)])
def test_differences_of_one_seed_have_no_interval(base, mean):
    found = difference({0: 2.0}, base)
    np.testing.assert_equal([found.mean, found.low, found.high], [mean, NAN, NAN])
    assert found.paired == (0 in base) and found.n == min(1, len(base))


def test_bands_are_intervals_point_by_point():
    values_NT = np.random.default_rng(0).normal(size=(6, 4)) + np.arange(4) * 10
    values_NT[2, 3] = NAN
    mean_T, low_T, high_T = bands(values_NT)
    for t in range(3):
        expected = mean_interval(values_NT[:, t])
        assert mean_T[t] == pytest.approx(expected.mean)
        np.testing.assert_allclose([low_T[t], high_T[t]], expected[1:3], atol=0.08)
    assert np.isnan([mean_T[3], low_T[3], high_T[3]]).all()
    np.testing.assert_array_equal(bands(values_NT[:1]), values_NT[:1].repeat(3, axis=0))


def rows(name, values):
    return [{"step": step, name: value} for step, value in enumerate(values)]


def test_number_of_a_run():
    thirty = rows("loss", range(30))
    assert number_of(thirty, "loss", 0.1) == 28.0  # of 27, 28, 29
    assert number_of(thirty, "loss", 0.5) == 22.0
    assert number_of(thirty, "loss", 1.0) == 14.5
    assert number_of(thirty[:4], "loss", 0.1) == 3.0
    held_out = [{"step": 0, "eval/scores": 0.5}, {"step": 1}, {"step": 2, "eval/scores": 0.75}]
    assert number_of([*held_out, {"step": 3}], "eval/scores", 1.0) == 0.75
    assert math.isnan(number_of(thirty, "no", 0.1))


@pytest.mark.parametrize("bad", [NAN, math.inf, "text", None, True, [1.0]])
def test_a_number_that_is_none_is_not_passed_over(bad):
    assert math.isnan(number_of(rows("x", [1.0, 1.0, bad, 1.0]), "x", 0.5))
    assert number_of(rows("x", [bad, 1.0, 1.0, 1.0]), "x", 0.5) == 1.0
    assert math.isnan(number_of(rows("eval/x", [1.0, bad]), "eval/x", 0.5))


def test_rule_is_said():
    assert rule("eval/scores", 0.1) == "last evaluation"
    assert rule("loss", 0.1) == "mean of the last 10 % of the iterations"
