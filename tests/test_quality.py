"""Measures of responses against enumeration, naive counting and published values."""

import itertools
import math

import numpy as np
import pytest

from ppo_jax import quality
from ppo_jax.errors import ConfigError
from ppo_jax.quality import PerPrompt

NAN = math.nan


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(k):
    rows = np.array(list(itertools.product((0.0, 1.0), repeat=5)))
    subsets = list(itertools.combinations(range(5), k))
    wanted = [np.mean([max(row[i] for i in some) for some in subsets]) for row in rows]
    np.testing.assert_allclose(quality.pass_at_k(rows, k, threshold=1.0), wanted, atol=1e-12)


def test_pass_at_k_of_many_samples_and_of_missing_ones():
    scores = np.zeros((1, 1000))
    scores[0, :3] = 0.5
    wanted = 1 - math.comb(997, 500) / math.comb(1000, 500)  # beyond float where multiplied out
    assert quality.pass_at_k(scores, 500, threshold=0.5)[0] == pytest.approx(wanted, rel=1e-12)
    assert quality.pass_at_k(scores, 500, threshold=0.6)[0] == 0
    some = np.array([[1.0, NAN, 0.0], [NAN, NAN, 1.0]])
    np.testing.assert_array_equal(quality.pass_at_k(some, 2, threshold=1.0), [1.0, NAN])
    np.testing.assert_array_equal(quality.pass_at_k(some, 1, threshold=1.0), [0.5, 1.0])


def test_distinct_counts_ngrams_within_texts():
    texts = ["a b a b", " the  the ", "", "a"]
    grams = {1: "a b a b the the a".split(), 2: ["ab", "ba", "ab", "the the"], 3: ["aba", "bab"]}
    for n, found in grams.items():
        assert quality.distinct(texts, n) == len(set(found)) / len(found)
    assert math.isnan(quality.distinct(texts, 5)) and math.isnan(quality.distinct([], 1))


def test_self_bleu_of_like_and_unlike_texts():
    alike = ["the cat sat on the mat today"] * 3
    assert quality.self_bleu(alike) == pytest.approx(1.0)
    assert quality.self_bleu(["one two three four", "five six seven eight"]) < 0.1
    mixed = [*alike, "nothing here is shared at all"]
    assert quality.self_bleu(mixed) == pytest.approx(0.75, abs=0.05)
    assert math.isnan(quality.self_bleu(["alone"]))
    assert quality.self_bleu(["a", "a"]) == pytest.approx(1.0)  # as short as they are


def test_texts_without_a_word_have_no_self_bleu():
    for texts in (["", " \n", ""], ["a", ""]):
        assert math.isnan(quality.self_bleu(texts))
    some = ["the cat sat here", "the dog sat there"]
    assert quality.self_bleu([*some, "", "  "]) == quality.self_bleu(some) > 0


def test_self_bleu_is_of_so_many_texts_and_the_same_each_time():
    texts = [f"text {n % 7} of {n % 3} kinds and {n} more" for n in range(30)]
    found = [quality.self_bleu(texts, limit=10, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert quality.self_bleu(texts, limit=30) == quality.self_bleu(texts, limit=100)


def test_self_bleu_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ConfigError, match=r"package sacrebleu: .*pip install sacrebleu "):
        quality.self_bleu(["a", "b"])


@pytest.mark.parametrize(
    "won, count, low, high",  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(won, count, low, high):
    found = quality.estimate(quality.mean(np.arange(count) < won, share=True))
    assert found.value == pytest.approx(won / count) and found.prompts == count
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.low >= 0 and (won > 0 or found.low == 0)


def test_wins_over_pairs_with_ties_as_half():
    ours = np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    theirs = np.array(
        [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, NAN, 1.0], [1, 1, 1]]
    )
    wanted = [(1 + 1 + 0.5 + 0.5 + 0.5 + 0) / 6, 1.0, 0.5, (1 + 0.5) / 2, NAN]
    np.testing.assert_allclose(quality.wins(ours, theirs), wanted)
    np.testing.assert_allclose(quality.wins(theirs, ours), 1 - np.array(wanted))


def test_a_prompt_that_has_no_number_is_left_out():
    number = quality.mean(np.array([1.0, NAN, 3.0]))
    assert quality.value(number) == 2.0 and quality.estimate(number).prompts == 2
    nothing = quality.estimate(quality.mean(np.array([NAN])))
    assert nothing.prompts == 0 and all(math.isnan(x) for x in nothing[:3])
    values = np.array([[1.0, NAN], [NAN, NAN], [-2.0, -4.0]])
    np.testing.assert_array_equal(quality.mean_known(values), [1.0, NAN, -3.0])
    np.testing.assert_array_equal(quality.best_known(values), [1.0, NAN, -2.0])


def test_a_mean_of_passes_is_a_share():
    """With an interval that has a width where all pass."""
    found = quality.estimate(quality.mean_of_samples(np.ones((20, 3))))
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(
        1 - 0.1611, abs=1e-4
    )
    assert quality.mean_of_samples(np.array([[0.0, 1.0], [NAN, 1.0]])).share
    assert not quality.mean_of_samples(np.array([[0.5, 1.0]])).share
    assert not quality.mean_of_samples(np.array([[NAN]])).share


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error():
    values = np.random.default_rng(7).normal(3.0, 2.0, 400)
    found = quality.estimate(quality.mean(values), seed=1)
    error = values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)
    assert found == quality.estimate(quality.mean(values), seed=1)
    assert found != quality.estimate(quality.mean(values), seed=2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 95 % intervals of 60 prompts about 5 % may miss: shares with ties, and ratios."""
    rng, held, rounds = np.random.default_rng(3), np.zeros(2), 200
    for seed in range(rounds):
        outcome = rng.choice([0.0, 0.5, 1.0], size=60, p=[0.2, 0.2, 0.6])
        share = quality.estimate(quality.mean(outcome, share=True))
        counts = rng.integers(1, 20, 60).astype(float)
        sums = counts * rng.normal(1.0, 0.5, 60)
        ratio = quality.estimate(PerPrompt(sums, counts, log=True), seed=seed)
        held += [share.low <= 0.7 <= share.high, ratio.low <= math.e <= ratio.high]
    assert (held / rounds > 0.90).all() and held[1] / rounds < 0.99


def test_a_ratio_weighs_prompts_by_their_tokens():
    number = PerPrompt(np.array([1.0, 6.0]), np.array([1.0, 2.0]))
    assert quality.value(number) == pytest.approx(7 / 3)
    assert quality.value(number._replace(log=True)) == pytest.approx(math.exp(7 / 3))
    assert quality.value(PerPrompt(np.array([1e6]), np.array([1.0]), log=True)) == math.inf
