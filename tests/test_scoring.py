"""Scoring passes against full-vocabulary float64 numpy, whatever the chunks and microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.microbatch import by_microbatch
from ppo_jax.scoring import token_statistics
from scoring_builders import STOPS, B, T, V, make_rollout, make_scorer

D = 16


def make_head(seed, *, tied=True):
    rng = np.random.default_rng(seed)
    head = {"embed": {"embedding": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)}}
    if not tied:
        head["lm_head"] = {"kernel": jnp.asarray(rng.normal(size=(D, V)), jnp.float32)}
    hidden_BTD = jnp.asarray(rng.normal(size=(B, T, D)) * 0.7, jnp.float32)
    return head, hidden_BTD


def slow_log_softmax(head, hidden_D, temperature, allowed):
    """float64 log-probabilities over `allowed` ids, -inf elsewhere."""
    if "lm_head" in head:
        kernel_DV = np.asarray(head["lm_head"]["kernel"], np.float64)
    else:
        kernel_DV = np.asarray(head["embed"]["embedding"], np.float64).T
    logits_V = np.asarray(hidden_D, np.float64) @ kernel_DV / temperature
    logprobs_V = np.full(V, -np.inf)
    top = logits_V[allowed].max()
    norm = top + np.log(np.sum(np.exp(logits_V[allowed] - top)))
    logprobs_V[allowed] = logits_V[allowed] - norm
    return logprobs_V


def slow_statistics(head, hidden_BTD, rollout, temperature, min_new_tokens, reference=None):
    """(logprob, entropy, KL) of each real token, one after another; 0 where masked."""
    stats = np.zeros((3, B, T))
    for b, t in zip(*np.nonzero(np.asarray(rollout.mask_BT)), strict=True):
        allowed = np.arange(V)
        if rollout.kept_ids_BTK is not None:
            allowed = np.array([i for i in np.asarray(rollout.kept_ids_BTK)[b, t] if i >= 0])
        if t < min_new_tokens:
            allowed = np.setdiff1d(allowed, STOPS)
        logprobs_V = slow_log_softmax(head, hidden_BTD[b, t], temperature, allowed)
        probs = np.exp(logprobs_V[allowed])
        stats[0, b, t] = logprobs_V[rollout.response_ids_BT[b, t]]
        stats[1, b, t] = -np.sum(probs * logprobs_V[allowed])
        if reference is not None:
            ref_V = slow_log_softmax(reference[0], reference[1][b, t], temperature, allowed)
            stats[2, b, t] = np.sum(probs * (logprobs_V[allowed] - ref_V[allowed]))
    return stats


@functools.partial(jax.jit, static_argnums=0)
def jit_statistics(scorer, *args):
    return statistics_of_rows(scorer, *args)


def statistics_of_rows(scorer, head, hidden_BTD, rollout, temperature, reference=None):
    """`token_statistics` of padded rows."""
    t_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    columns = {"hidden": hidden_BTD, "ids": rollout.response_ids_BT, "t": t_BT}
    if rollout.kept_ids_BTK is not None:
        columns["kept"] = rollout.kept_ids_BTK
    ref_params = None
    if reference is not None:
        ref_params, columns["ref_hidden"] = reference
    count_Z = rollout.lengths_B
    return token_statistics(scorer, head, columns, count_Z, temperature, ref_params)


def assert_statistics(stats, expected, rollout, temperature):
    """Entropies and KLs are differences of numbers as large as the logits."""
    mask_BT = np.asarray(rollout.mask_BT) > 0
    loose = 2e-5 / min(temperature, 1.0)
    for got, want, tolerance in zip(stats, expected, (1e-5, loose, loose), strict=True):
        assert got.dtype == jnp.float32 and got.shape == (B, T)
        assert np.isfinite(got).all()  # masked columns too: nothing may turn into NaN later
        np.testing.assert_allclose(np.asarray(got)[mask_BT], want[mask_BT], atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 10, 64])
@pytest.mark.parametrize("kept, min_new_tokens", [(None, 0), (7, 0), (None, 4), (7, 4)])
def test_statistics_match_float64_numpy_for_every_chunk(chunk, kept, min_new_tokens):
    for seed, temperature, tied in ((0, 1.0, True), (1, 0.3, False), (2, 1.7, True)):
        rollout = make_rollout(seed, kept=kept, min_new_tokens=min_new_tokens)
        head, hidden_BTD = make_head(seed, tied=tied)
        ref, ref_hidden_BTD = make_head(seed + 100, tied=tied)
        scorer = make_scorer(chunk=chunk, min_new_tokens=min_new_tokens)
        stats = jit_statistics(
            scorer, head, hidden_BTD, rollout, temperature, (ref, ref_hidden_BTD)
        )
        reference = (ref, np.asarray(ref_hidden_BTD))
        expected = slow_statistics(
            head, np.asarray(hidden_BTD), rollout, temperature, min_new_tokens, reference
        )
        assert_statistics(stats, expected, rollout, temperature)
        kl_BT = np.asarray(stats[2])[np.asarray(rollout.mask_BT) > 0]
        assert kl_BT.min() >= -1e-6


def test_no_reference_gives_no_kl():
    rollout, (head, hidden_BTD) = make_rollout(0), make_head(0)
    whole = jit_statistics(make_scorer(), head, hidden_BTD, rollout, 1.0)
    chunked = jit_statistics(make_scorer(chunk=3), head, hidden_BTD, rollout, 1.0)
    assert whole[2] is None and chunked[2] is None


@pytest.mark.parametrize("kept", [None, 7])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.7])
def test_exact_kl_to_itself_is_zero(kept, temperature):
    for seed in range(5):
        rollout, (head, hidden_BTD) = make_rollout(seed, kept=kept), make_head(seed)
        copied = jax.tree.map(jnp.copy, (head, hidden_BTD))
        scorer = make_scorer(chunk=4, min_new_tokens=1)
        kl_BT = jit_statistics(scorer, head, hidden_BTD, rollout, temperature, copied)[2]
        assert np.abs(np.asarray(kl_BT)[np.asarray(rollout.mask_BT) > 0]).max() <= 1e-6


@pytest.mark.parametrize("kept, min_new_tokens", [(None, 0), (7, 3)])
def test_gradients_do_not_depend_on_the_chunk(kept, min_new_tokens):
    rollout = make_rollout(3, kept=kept, min_new_tokens=min_new_tokens)
    (head, hidden_BTD), reference = make_head(3), make_head(4)
    weights = jax.random.normal(jax.random.key(0), (3, B, T)) * rollout.mask_BT[None]

    def loss(head, hidden_BTD, reference, temperature, chunk):
        scorer = make_scorer(chunk=chunk, min_new_tokens=min_new_tokens)
        stats = statistics_of_rows(scorer, head, hidden_BTD, rollout, temperature, reference)
        return sum(jnp.sum(w * s) for w, s in zip(weights, stats, strict=True)) / 100

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)), static_argnums=4)
    whole = gradient(head, hidden_BTD, reference, 0.8, 64)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(whole))
    assert float(jnp.abs(whole[1]).max()) > 1e-3
    for chunk in (1, 3, 5, 9):
        chunked = gradient(head, hidden_BTD, reference, 0.8, chunk)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), chunked, whole
        )


def test_gradient_of_the_logprobs_matches_numpy():
    rollout, (head, hidden_BTD) = make_rollout(5), make_head(5)
    loss = lambda hidden_BTD: jnp.sum(
        statistics_of_rows(make_scorer(chunk=3), head, hidden_BTD, rollout, 0.7)[0]
        * rollout.mask_BT
    )
    gradient_BTD = jax.jit(jax.grad(loss))(hidden_BTD)
    kernel_VD = np.asarray(head["embed"]["embedding"], np.float64)
    for b in range(B):
        for t in range(T):
            if rollout.mask_BT[b, t] == 0:
                np.testing.assert_array_equal(gradient_BTD[b, t], 0)
                continue
            logprobs_V = slow_log_softmax(head, hidden_BTD[b, t], 0.7, np.arange(V))
            onehot_V = np.arange(V) == int(rollout.response_ids_BT[b, t])
            expected_D = (onehot_V - np.exp(logprobs_V)) @ kernel_VD / 0.7
            np.testing.assert_allclose(gradient_BTD[b, t], expected_D, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12])
def test_microbatches_come_back_in_row_order(count):
    rows = {"x": jnp.arange(12.0), "y": jnp.arange(24).reshape(12, 2), "none": None}
    sizes = []

    def double(part):
        sizes.append(part["x"].shape[0])
        return {"x": 2 * part["x"], "y": part["y"] + 1, "none": None}

    result = by_microbatch(double, rows, count)
    np.testing.assert_array_equal(result["x"], 2 * rows["x"])
    np.testing.assert_array_equal(result["y"], rows["y"] + 1)
    assert result["none"] is None and set(sizes) == {12 // count}
