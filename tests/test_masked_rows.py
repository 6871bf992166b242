"""Rows without a score, under `reward.on_error=mask`: as if they had not been sampled."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import replace
from ppo_jax.reward import combine_scores, shape_rewards, shape_scores, update_moments
from ppo_jax.step import learn, sample_rollout, score_rollout, training_rows
from step_builders import (
    BASE,
    EOS,
    assert_close,
    case,
    column_reward,
    leaves,
    prompts_at,
    same,
    setup_of,
    start,
    traced,
)

B = BASE.rollout.batch_size
GOOD = np.array([True, False, True, True, False, False, True, True])
SCORES = np.linspace(-1.0, 2.0, B, dtype=np.float32)
LACKING = np.where(GOOD, SCORES, np.nan)


def variant(on_error="mask", **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return replace(BASE, **{"reward.on_error": on_error}, **changes)


KINDS = {
    "gae": {
        "reward__normalize_scores": True,
        "reward__whiten_rewards": True,
        "optim__weight_decay": 0.1,
        "ppo__aggregate": "seq-mean",
    },
    "by tokens": {
        "ppo__token_sizes": 2,
        "ppo__microbatches": 2,
        "ppo__bootstrap_truncated": True,
        "hparams__entropy_coef": 0.1,
    },
    "separate": {
        "model__critic": "separate",
        "reward__kl_in": "loss",
        "reward__kl_estimator": "full",
        "ppo__value_epochs": 3,
        "hparams__target_kl": 1.0,
        "hparams__tis_cap": 2.0,
    },
    "rloo": {"ppo__advantage": "rloo", "rollout__samples_per_prompt": 2},
    "group_mean": {
        "ppo__advantage": "group_mean",
        "rollout__samples_per_prompt": 4,
        "reward__drop_truncated": True,
        "rollout__stop_token_ids": (EOS, *range(34, 64)),
    },
    "reinforce": {"ppo__advantage": "reinforce", "ppo__minibatches": 8, "ppo__epochs": 1},
}


class Pieces(NamedTuple):
    """An iteration up to the scores, and what learns from them."""

    state: Any
    rollout: Any
    scored: Any
    learn: Any  # (state, rollout, scored, scores_B) -> (state, metrics, rollout, scores_B)


@functools.cache
def pieces(kind: str, on_error: str = "mask") -> Pieces:
    setup = setup_of(variant(on_error, **KINDS[kind]))
    state, frozen = start(setup)
    hparams = traced(setup.config.hparams)
    compiled = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})
    sampled = compiled(functools.partial(sample_rollout, setup))
    rollout = sampled(state, frozen, hparams, prompts_at(setup))
    scored = compiled(functools.partial(score_rollout, setup))(state, frozen, hparams, rollout)
    teach = lambda state, rollout, scored, scores_B: learn(
        setup, state, frozen, hparams, rollout, scored, {"rule": scores_B}
    )
    return Pieces(state, rollout, scored, compiled(teach))


def moved(state):
    return {"params": state.params, "opt": state.opt_state, "moments": state.moments}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_score_is_one_without_tokens(kind):
    state, rollout, scored, masking = pieces(kind)
    found, metrics, _, scores_B = masking(state, rollout, scored, LACKING)
    np.testing.assert_array_equal(scores_B, LACKING)
    assert metrics["reward/masked"] == 3 and metrics["update/nonfinite_in_row"] == 0
    # The other mode, which knows nothing of rows that lack a score.
    blind = pieces(kind, "abort").learn
    bare = rollout._replace(mask_BT=jnp.where(GOOD[:, None], rollout.mask_BT, 0.0))
    expected = blind(state, bare, scored, LACKING)[0]
    assert_close(moved(found), moved(expected), rtol=2e-5, atol=1e-7)
    # And it is something else than a score of 0.
    zero = blind(state, rollout, scored, np.nan_to_num(LACKING))[0]
    assert not np.allclose(norm(found.params), norm(zero.params), rtol=1e-6, atol=0)


def norm(tree) -> float:
    return float(np.sqrt(sum((np.float64(x) ** 2).sum() for x in leaves(tree).values())))


@pytest.mark.parametrize("kind", KINDS)
def test_what_such_a_row_holds_is_never_read(kind):
    """Other tokens, other log-probabilities and values, or none: bit for bit the same."""
    state, rollout, scored, masking = pieces(kind)
    expected = masking(state, rollout, scored, LACKING)[0]
    swap = lambda x, other: jnp.where(GOOD.reshape(-1, *[1] * (x.ndim - 1)), x, other)
    for seed, (wrong, score) in enumerate([(1e6, np.nan), (-3.0, -np.inf), (np.nan, np.inf)]):
        ids_BT = np.random.default_rng(seed).integers(2, 64, rollout.response_ids_BT.shape)
        other = rollout._replace(response_ids_BT=swap(rollout.response_ids_BT, ids_BT))
        garbled = jax.tree.map(functools.partial(swap, other=jnp.float32(wrong)), scored)
        if scored.ref_hidden_BTD is not None:  # which is read, to be multiplied with 0
            garbled = garbled._replace(ref_hidden_BTD=swap(scored.ref_hidden_BTD, -3.0))
        lacking = np.where(GOOD, SCORES, np.float32(score))
        found = masking(state, other, garbled, lacking)[0]
        assert same(moved(found), moved(expected)), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_score_nothing_moves(kind):
    """Not even by what Adam remembers, or by the decay of the weights."""
    state, rollout, scored, masking = pieces(kind)
    before = masking(state, rollout, scored, SCORES)[0]
    assert not same(before.params, state.params)
    after, metrics, _, scores_B = masking(before, rollout, scored, np.full(B, np.nan, np.float32))
    assert same(moved(after), moved(before)) and after.step == before.step + 1
    assert all(np.isfinite(x).all() for x in leaves(after).values())
    assert np.isnan(scores_B).all() and metrics["reward/masked"] == B
    assert np.isnan(metrics["objective/scores"]) and np.isnan(metrics["reward/rule"])
    assert after.nonfinite == 0 and metrics["update/skipped_nonfinite"] == 0
    assert all(np.isfinite(v) for k, v in metrics.items() if not k.startswith(("obj", "reward/")))


def test_a_minibatch_without_any_score_is_no_step():
    """Of eight minibatches of a row, three."""
    state, rollout, scored, masking = pieces("reinforce")
    counts = lambda state: {k: x for k, x in leaves(state.opt_state).items() if "count" in k}
    for scores_B, steps in ((SCORES, 8), (LACKING, 5)):
        after = counts(masking(state, rollout, scored, scores_B)[0])
        assert any(x == steps for x in after.values()) and max(after.values()) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_scores_it_is_as_without_the_option(kind):
    state, rollout, scored, masking = pieces(kind)
    found, metrics, *_ = masking(state, rollout, scored, SCORES)
    expected, expected_metrics, *_ = pieces(kind, "abort").learn(state, rollout, scored, SCORES)
    assert metrics.pop("reward/masked") == 0
    assert same(found, expected)
    assert_close(metrics, expected_metrics, rtol=1e-6)


def test_metrics_are_of_the_rows_that_have_a_score():
    """In one program, of a reward on the device."""
    built = case(variant(reward__normalize_scores=True), rule=column_reward)
    prompts = prompts_at(built.setup, score=LACKING)
    state, metrics, _, scores_B = built.program(built.state, built.frozen, built.hparams, prompts)
    good = LACKING[GOOD].astype(np.float64)
    np.testing.assert_array_equal(scores_B, LACKING)
    normal = (good - good.mean()) / (good.std(ddof=1) + 1e-6)
    expected = {
        "objective/scores": good.mean(),
        "objective/scores_std": good.std(),
        "reward/rule": good.mean(),
        "reward/masked": 3,
        "objective/scores_shaped": normal.mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    moments = state.moments
    assert moments.count == 5
    np.testing.assert_allclose(moments.mean, good.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.m2, ((good - good.mean()) ** 2).sum(), rtol=1e-5)
    assert all(np.isfinite(v) for v in metrics.values())


def slow_advantages(kind: str, rewards, values, lengths, samples: int):
    """[B] lists of the rows' advantages before whitening, none where there is no score; float64."""
    returns, found = [row[:n].sum() for row, n in zip(rewards, lengths, strict=True)], []
    to_go = [np.cumsum(row[:n][::-1])[::-1] for row, n in zip(rewards, lengths, strict=True)]
    baseline = np.concatenate([x for x, good in zip(to_go, GOOD, strict=True) if good]).mean()
    for b in range(B):
        group = [i for i in range(b // samples * samples, (b // samples + 1) * samples) if GOOD[i]]
        others = [returns[i] for i in group if i != b]
        if not GOOD[b]:
            found.append(np.zeros(0))
        elif kind == "rloo":
            found.append(np.full(lengths[b], returns[b] - np.mean(others) if others else 0.0))
        elif kind == "group_mean":
            these = np.array([returns[i] for i in group])
            std = these.std(ddof=1) if len(these) > 1 else 0.0
            found.append(np.full(lengths[b], (returns[b] - these.mean()) / (std + 1e-4)))
        elif kind == "reinforce":
            found.append(to_go[b] - baseline)
        else:  # GAE with gamma = lambda = 1
            found.append(to_go[b] - values[b, : lengths[b]])
    return found


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("kind", ["gae", "rloo", "group_mean", "reinforce"])
def test_advantages_are_those_of_the_others(kind, samples):
    """Score, normalisation, whitening, baselines: float64 numpy that leaves the rows out."""
    changes = {"ppo__advantage": kind, "hparams__lam": 1.0, "hparams__gamma": 1.0}
    if kind != "reinforce" and kind != "gae":
        changes["rollout__samples_per_prompt"] = samples
    setup = setup_of(variant(**changes, reward__normalize_scores=True))
    _, rollout, scored, _ = pieces("gae")
    options, hparams = setup.config.reward, setup.config.hparams
    lengths, kl = np.asarray(rollout.lengths_B), np.asarray(scored.old_logprobs_BT, np.float64)
    scores = combine_scores({"rule": jnp.asarray(LACKING)}, {"rule": 2.0}, rollout, on_error="mask")
    mask_BT = scores.counted(rollout.mask_BT)
    moments = update_moments(pieces("gae").state.moments, scores.sequence_B, scores.valid_B)
    score_B = shape_scores(options, hparams, scores, moments, rollout)
    rewards_BT = shape_rewards(
        options, score_B, scores.token_BT, scored.old_logprobs_BT, 0.1, rollout, mask_BT
    )
    rows = training_rows(setup, hparams, rewards_BT, scored, rollout, mask_BT)

    good = 2.0 * LACKING[GOOD].astype(np.float64)
    rewards = -0.1 * kl
    last = (np.arange(B), lengths - 1)
    rewards[last] += (2.0 * LACKING - good.mean()) / (good.std(ddof=1) + 1e-6)
    values = np.asarray(scored.values_BT, np.float64)
    slow = slow_advantages(kind, np.nan_to_num(rewards), values, lengths, samples)
    every = np.concatenate(slow)
    for b in range(B):
        n = len(slow[b])
        assert n == rows.mask_BT[b].sum() and (n > 0) == GOOD[b]
        white = (slow[b] - every.mean()) / every.std(ddof=1)
        np.testing.assert_allclose(rows.advantages_BT[b, :n], white, rtol=1e-4, atol=1e-4)
        assert np.all(rows.advantages_BT[b, n:] == 0)


def test_one_bad_part_or_token_is_a_row_without_a_score():
    _, rollout, _, _ = pieces("gae")
    real_BT = rollout.mask_BT > 0
    token_BT = jnp.where(real_BT, 1.0, jnp.nan).at[1, 0].set(jnp.inf)  # pads do not count
    raw = {"a": jnp.zeros(B).at[4].set(jnp.nan), "b": jnp.ones(B).at[5].set(-jnp.inf)}
    scores = combine_scores(
        raw | {"t": token_BT}, {"a": 1.0, "b": 2.0, "t": 1.0}, rollout, on_error="mask"
    )
    np.testing.assert_array_equal(scores.valid_B, GOOD)
    expected = np.where(GOOD, 2.0 + np.asarray(rollout.lengths_B), np.nan)
    np.testing.assert_array_equal(scores.total_B, expected)
    assert np.all(scores.token_BT[~GOOD] == 0) and np.all(scores.sequence_B[~GOOD] == 0)
    np.testing.assert_array_equal(scores.counted(rollout.mask_BT)[GOOD], rollout.mask_BT[GOOD])
    assert not scores.counted(rollout.mask_BT)[~GOOD].any()
    assert scores.mean(scores.parts["a"]) == 0.0
    blind = combine_scores(raw, {"a": 1.0, "b": 2.0}, rollout)
    assert blind.valid_B is None and np.isnan(blind.total_B[4]) and np.isinf(blind.total_B[5])
