"""From scores to token rewards, against float64 numpy written out row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import HParams, RewardOptions
from ppo_jax.reward import (
    Scores,
    combine_scores,
    reference_kl,
    shape_rewards,
    shape_scores,
    update_moments,
)
from ppo_jax.types import Rollout, Scored, ScoreMoments

B, T = 9, 7
EMPTY = ScoreMoments(jnp.float32(0), jnp.float32(0), jnp.float32(0))


def make_rollout(rng):
    """Lengths 1 and T among others; some rows ended, one of them at the limit."""
    lengths_B = rng.integers(1, T + 1, size=B)
    lengths_B[:3] = 1, T, T
    ended_B = lengths_B < T
    ended_B[1] = True
    return Rollout(
        prompt_ids_BP=jnp.zeros((B, 2), jnp.int32),
        prompt_mask_BP=jnp.ones((B, 2), bool),
        response_ids_BT=jnp.zeros((B, T), jnp.int32),
        mask_BT=jnp.asarray(np.arange(T) < lengths_B[:, None], jnp.float32),
        lengths_B=jnp.asarray(lengths_B, jnp.int32),
        ended_B=jnp.asarray(ended_B),
        logprobs_BT=jnp.zeros((B, T)),
        values_BT=None,
        kept_ids_BTK=None,
        slot_steps_B=jnp.zeros(B),
    )


def float32(rng, *shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_parts_are_weighed_and_summed():
    rng = np.random.default_rng(0)
    rollout = make_rollout(rng)
    raw = {
        "a": float32(rng, B),
        "b": jnp.asarray(rng.integers(0, 5, B), jnp.int32),
        "host/x": float32(rng, B),
        "host/y": float32(rng, B),
        "own/z": float32(rng, B),
        "token": float32(rng, B, T),
        "more": jnp.where(rollout.mask_BT > 0, 1.0, jnp.nan),
    }
    weights = {
        "a": 0.5,
        "b": 2.0,
        "host": -1.5,
        "own": 9.0,
        "own/z": 0.25,
        "token": 3.0,
        "more": 0.1,
    }
    scores = combine_scores(raw, weights, rollout)
    values, mask_BT = as_float64(raw), np.asarray(rollout.mask_BT)
    for b in range(B):
        expected = 0.5 * values["a"][b] + 2 * values["b"][b] + 0.25 * values["own/z"][b]
        expected -= 1.5 * (values["host/x"][b] + values["host/y"][b])
        assert abs(scores.sequence_B[b] - expected) < 1e-5
        for t in range(T):
            expected = 3 * values["token"][b, t] + 0.1 if mask_BT[b, t] else 0.0
            assert abs(scores.token_BT[b, t] - expected) < 1e-5
        length = int(rollout.lengths_B[b])
        assert abs(scores.parts["token"][b] - values["token"][b, :length].sum()) < 1e-5
        assert scores.parts["more"][b] == length
    assert list(scores.parts) == list(raw)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(scores))
    np.testing.assert_array_equal(scores.parts["b"], values["b"])  # unweighted, in the log


def test_fractions_survive_and_no_parts_give_zeros():
    rollout = make_rollout(np.random.default_rng(1))
    half = combine_scores({"a": jnp.full(B, 0.5, jnp.bfloat16)}, {"a": 1.0}, rollout)
    np.testing.assert_array_equal(half.sequence_B, np.full(B, 0.5))
    none = combine_scores({}, {}, rollout)
    assert np.all(none.sequence_B == 0) and none.token_BT.shape == (B, T)


def test_a_part_without_a_weight_is_an_error():
    rollout = make_rollout(np.random.default_rng(1))
    with pytest.raises(KeyError, match="b"):
        combine_scores({"b": jnp.zeros(B)}, {"a": 1.0}, rollout)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_moments_equal_those_of_all_scores_so_far(offset):
    rng = np.random.default_rng(2)
    update = jax.jit(update_moments)
    moments, seen = EMPTY, np.zeros(0)
    for _ in range(30):
        scores_B = np.asarray(offset + 3 * rng.normal(size=rng.integers(1, 12)), np.float32)
        moments = update(moments, jnp.asarray(scores_B))
        seen = np.concatenate([seen, scores_B.astype(np.float64)])
        assert moments.count == len(seen)
        np.testing.assert_allclose(moments.mean, seen.mean(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.m2, ((seen - seen.mean()) ** 2).sum(), rtol=1e-3)


def test_moments_leave_out_what_is_not_finite():
    scores_B = jnp.asarray([1.0, jnp.nan, 4.0, jnp.inf, -jnp.inf, 1.0])
    moments = update_moments(EMPTY, scores_B)
    assert moments == (3.0, 2.0, 6.0)
    assert update_moments(moments, jnp.full(4, jnp.nan)) == (3.0, 2.0, 6.0)
    assert update_moments(EMPTY, jnp.full(4, jnp.nan)) == (0.0, 0.0, 0.0)


def slow_score(options, hparams, score, moments, ended, length):
    if options.normalize_scores:
        variance = moments.m2 / max(moments.count - 1, 1)
        score = (score - moments.mean) / (np.sqrt(variance) + 1e-6)
    if hparams.score_clip is not None:
        score = min(max(score, -hparams.score_clip), hparams.score_clip)
    if hparams.missing_eos_penalty is not None and not ended:
        score -= hparams.missing_eos_penalty
    if hparams.length_penalty is not None:
        score -= hparams.length_penalty * length
    if hparams.overlong_penalty is not None:
        free = T - options.overlong_buffer
        if length > free:
            score -= hparams.overlong_penalty * (length - free) / options.overlong_buffer
    return score


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_clip": 0.5},
        {"missing_eos_penalty": 1.5},
        {"length_penalty": 0.1},
        {"overlong_penalty": 2.0},
        {"score_clip": 0.0, "missing_eos_penalty": 0.0},
        {"score_clip": 0.7, "missing_eos_penalty": 1.0, "length_penalty": 0.2}
        | {"overlong_penalty": 0.5},
    ],
    ids=str,
)
def test_scores_match_float64_numpy(normalize, changes):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rollout = make_rollout(rng)
        options = RewardOptions(normalize_scores=normalize, overlong_buffer=3)
        hparams = HParams(**changes)
        moments = update_moments(EMPTY, float32(rng, 40, scale=2.0) + 1.0)
        scores = Scores(float32(rng, B, scale=2.0), jnp.zeros((B, T)), {})
        score_B = shape_scores(options, hparams, scores, moments, rollout)
        assert score_B.dtype == jnp.float32 and score_B.shape == (B,)
        for b in range(B):
            expected = slow_score(
                options,
                hparams,
                float(scores.sequence_B[b]),
                as_float64(moments),
                bool(rollout.ended_B[b]),
                int(rollout.lengths_B[b]),
            )
            assert abs(score_B[b] - expected) < 1e-5


def test_hparams_of_the_scores_may_be_traced():
    rollout = make_rollout(np.random.default_rng(3))
    scores = Scores(jnp.arange(B, dtype=jnp.float32), jnp.zeros((B, T)), {})
    options = RewardOptions(overlong_buffer=3, normalize_scores=True)
    hparams = HParams(
        score_clip=2.0, missing_eos_penalty=1.0, length_penalty=0.1, overlong_penalty=0.3
    )
    moments = update_moments(EMPTY, scores.sequence_B)
    shaped = lambda hparams: shape_scores(options, hparams, scores, moments, rollout)
    np.testing.assert_allclose(jax.jit(shaped)(hparams), shaped(hparams), rtol=1e-5, atol=1e-6)


def test_first_batch_of_equal_scores_normalises_to_zero():
    rollout = make_rollout(np.random.default_rng(4))
    scores = Scores(jnp.full(B, 0.25), jnp.zeros((B, T)), {})
    moments = update_moments(EMPTY, scores.sequence_B)
    options = RewardOptions(normalize_scores=True)
    np.testing.assert_array_equal(
        shape_scores(options, HParams(), scores, moments, rollout), np.zeros(B)
    )


def slow_rewards(options, score_B, token_BT, kl_BT, kl_coef, lengths_B):
    rewards = np.zeros((B, T))
    for b in range(B):
        for t in range(lengths_B[b]):
            rewards[b, t] = token_BT[b, t]
            if t == lengths_B[b] - 1:
                rewards[b, t] += score_B[b]
            if options.kl_in == "reward":
                rewards[b, t] -= kl_coef * kl_BT[b, t]
    if options.whiten_rewards:
        real = np.concatenate([rewards[b, : lengths_B[b]] for b in range(B)])
        for b in range(B):
            for t in range(lengths_B[b]):
                centred = rewards[b, t] - real.mean()
                rewards[b, t] = centred / np.sqrt(real.var(ddof=1) + 1e-8) + real.mean()
    return rewards


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_rewards_match_float64_numpy(kl_in, whiten, kl_coef):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rollout = make_rollout(rng)
        options = RewardOptions(kl_in=kl_in, whiten_rewards=whiten)
        real_BT = rollout.mask_BT > 0
        score_B, token_BT = float32(rng, B), jnp.where(real_BT, float32(rng, B, T), 0.0)
        kl_BT = jnp.where(real_BT, float32(rng, B, T), jnp.nan)  # never read where masked
        rewards_BT = shape_rewards(
            options, score_B, token_BT, kl_BT, jnp.float32(kl_coef), rollout, rollout.mask_BT
        )
        assert rewards_BT.dtype == jnp.float32
        expected_BT = slow_rewards(
            options, *as_float64((score_B, token_BT, kl_BT)), kl_coef, np.asarray(rollout.lengths_B)
        )
        np.testing.assert_allclose(rewards_BT, expected_BT, atol=1e-5)


def test_rewards_of_a_row_sum_to_its_score_less_its_kl():
    rng = np.random.default_rng(5)
    rollout = make_rollout(rng)
    score_B, kl_BT = float32(rng, B), float32(rng, B, T)
    zeros_BT = jnp.zeros((B, T))
    rewards_BT = shape_rewards(
        RewardOptions(), score_B, zeros_BT, kl_BT, 0.2, rollout, rollout.mask_BT
    )
    expected_B = score_B - 0.2 * jnp.sum(kl_BT * rollout.mask_BT, axis=1)
    np.testing.assert_allclose(rewards_BT.sum(axis=1), expected_B, atol=1e-5)


def test_the_configured_estimator_is_the_kl_of_the_reward():
    rng = np.random.default_rng(6)
    old_BT, ref_BT, full_BT = (float32(rng, B, T) for _ in range(3))
    scored = Scored(old_BT, jnp.zeros((B, T)), None, ref_BT, full_BT, None)
    gap_BT = np.asarray(old_BT, np.float64) - np.asarray(ref_BT, np.float64)
    expected = {
        "k1": gap_BT,
        "k2": gap_BT**2 / 2,
        "k3": np.exp(-gap_BT) - 1 + gap_BT,
        "abs": np.abs(gap_BT),
        "full": full_BT,
    }
    for kind, expected_BT in expected.items():
        kl_BT = reference_kl(RewardOptions(kl_estimator=kind), scored)
        np.testing.assert_allclose(kl_BT, expected_BT, atol=1e-5)
