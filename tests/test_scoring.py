"""Scoring passes against full-vocabulary float64 numpy, whatever the chunks and microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, tiny_model, trunk_params
from ppo_jax.model import Decoder, init_value_head, stack_layers, value_head
from ppo_jax.reward import kl_estimate
from ppo_jax.scoring import Scorer, by_microbatch, forward, token_statistics, values_from
from ppo_jax.types import Rollout

B, P, T, V, D = 6, 4, 10, 83, 16
STOPS = (3, 80)


def make_scorer(decoder=None, *, chunk=100, min_new_tokens=0):
    decoder = Decoder(tiny_model()) if decoder is None else decoder
    return Scorer(decoder, decoder, STOPS, min_new_tokens, chunk)


def make_rollout(seed, *, vocab=V, T=T, kept=None, min_new_tokens=0):
    """Random responses of 1 to T tokens; `kept` ids recorded a token, some of them empty places."""
    rng = np.random.default_rng(seed)
    prompts = random_prompts(B, P, seed, vocab)
    lengths_B = rng.integers(max(1, min_new_tokens), T + 1, size=B)
    lengths_B[:2] = max(1, min_new_tokens), T
    mask_BT = np.arange(T) < lengths_B[:, None]
    allowed = np.setdiff1d(np.arange(vocab), STOPS)
    ids_BT = np.where(mask_BT, rng.choice(allowed, size=(B, T)), 80)
    kept_BTK = None
    if kept is not None:
        kept_BTK = np.full((B, T, kept), -1)
        for b, t in zip(*np.nonzero(mask_BT), strict=True):
            others = np.setdiff1d(allowed, ids_BT[b, t])
            ids = [ids_BT[b, t], *rng.choice(others, rng.integers(0, kept), replace=False)]
            kept_BTK[b, t, : len(ids)] = rng.permutation(ids)
        kept_BTK = jnp.asarray(kept_BTK, jnp.int32)
    return Rollout(
        prompt_ids_BP=prompts.ids_BP,
        prompt_mask_BP=prompts.mask_BP,
        response_ids_BT=jnp.asarray(ids_BT, jnp.int32),
        mask_BT=jnp.asarray(mask_BT, jnp.float32),
        lengths_B=jnp.asarray(lengths_B, jnp.int32),
        ended_B=jnp.zeros(B, bool),
        logprobs_BT=jnp.zeros((B, T)),
        values_BT=None,
        kept_ids_BTK=kept_BTK,
    )


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
    return token_statistics(scorer, *args)


def assert_statistics(stats, expected, rollout, temperature):
    """Entropies and KLs are differences of numbers as large as the logits: 40 at temperature 0.3."""
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
        stats = token_statistics(scorer, head, hidden_BTD, rollout, temperature, reference)
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
        token_statistics(make_scorer(chunk=3), head, hidden_BTD, rollout, 0.7)[0] * rollout.mask_BT
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


@functools.partial(jax.jit, static_argnums=0)
def jit_forward(scorer, params, rollout, temperature):
    return forward(scorer, params, rollout, temperature)


def test_hidden_states_stand_before_each_token_and_after_the_last():
    config = tiny_model()
    params, scorer = trunk_params(config, 6), make_scorer(Decoder(config))
    rollout = make_rollout(6, vocab=config.vocab_size)
    hidden_BUD = jit_forward(scorer, params, rollout, 1.0).hidden_BUD
    assert hidden_BUD.shape == (B, T + 1, config.embed_dim)
    # Each row alone, without padding: token t is predicted by the state at prompt + t - 1.
    for b in range(3):
        length = int(rollout.lengths_B[b])
        alone = rollout._replace(
            prompt_ids_BP=rollout.prompt_ids_BP[b : b + 1][:, rollout.prompt_mask_BP[b]],
            prompt_mask_BP=jnp.ones((1, int(rollout.prompt_mask_BP[b].sum())), bool),
            response_ids_BT=rollout.response_ids_BT[b : b + 1, :length],
            mask_BT=jnp.ones((1, length)),
        )
        expected_UD = jit_forward(scorer, params, alone, 1.0).hidden_BUD[0]
        np.testing.assert_allclose(hidden_BUD[b, : length + 1], expected_UD, atol=1e-5)


def test_what_stands_after_the_end_changes_nothing():
    config = tiny_model()
    params, scorer = trunk_params(config, 7), make_scorer(Decoder(config), chunk=3)
    rollout = make_rollout(7, vocab=config.vocab_size)
    real_BT = rollout.mask_BT > 0
    other_BT = jax.random.randint(jax.random.key(0), (B, T), 0, config.vocab_size)
    changed = rollout._replace(
        response_ids_BT=jnp.where(real_BT, rollout.response_ids_BT, other_BT)
    )
    wider = rollout._replace(
        response_ids_BT=jnp.pad(rollout.response_ids_BT, ((0, 0), (0, 4))),
        mask_BT=jnp.pad(rollout.mask_BT, ((0, 0), (0, 4))),
    )
    expected = jit_forward(scorer, params, rollout, 0.7)
    for other in (changed, wider):
        got = jit_forward(scorer, params, other, 0.7)
        for name in ("logprobs_BT", "entropy_BT"):
            got_BT, expected_BT = getattr(got, name)[:, :T], getattr(expected, name)
            np.testing.assert_allclose(got_BT[real_BT], expected_BT[real_BT], atol=1e-5)
        assert np.isfinite(got.logprobs_BT).all() and np.isfinite(got.entropy_BT).all()


@pytest.mark.parametrize("kept, min_new_tokens", [(None, 0), (7, 2)])
@pytest.mark.parametrize("layout", [lambda params: params, stack_layers], ids=["list", "stacked"])
def test_policy_equal_to_the_reference_has_no_kl(kept, min_new_tokens, layout):
    """Also with the policy's forward inside a gradient, which is another program."""
    config = tiny_model()
    decoder = Decoder(config)
    params = layout(trunk_params(config, 8))
    rollout = make_rollout(8, vocab=V, kept=kept, min_new_tokens=min_new_tokens)
    scorer = make_scorer(decoder, chunk=4, min_new_tokens=min_new_tokens)
    mask_BT = np.asarray(rollout.mask_BT) > 0

    def loss(params, temperature):
        out = forward(scorer, params, rollout, temperature)
        return jnp.sum(out.logprobs_BT * rollout.mask_BT), out.logprobs_BT

    in_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    reference = jax.tree.map(jnp.copy, params)
    for temperature in map(jnp.float32, (0.3, 0.7, 1.0, 1.7)):
        policy_BT = jit_forward(scorer, params, rollout, temperature).logprobs_BT
        ref_BT = jit_forward(scorer, reference, rollout, temperature).logprobs_BT
        for kind in ("k1", "k2", "k3", "abs"):
            kl_BT = np.asarray(kl_estimate(policy_BT, ref_BT, kind))
            assert np.abs(kl_BT[mask_BT]).max() <= 1e-6
        (_, new_BT), _ = in_gradient(params, temperature)
        ratio_BT = np.exp(np.asarray(new_BT - policy_BT, np.float64))
        assert np.abs(ratio_BT - 1)[mask_BT].max() <= 1e-5


def test_final_value_is_that_of_the_state_after_the_last_token():
    config = tiny_model()
    policy, critic = trunk_params(config, 9), trunk_params(config, 10)
    scorer, rollout = make_scorer(Decoder(config)), make_rollout(9, vocab=config.vocab_size)
    head = {"kernel": jax.random.normal(jax.random.key(0), (config.embed_dim, 1))}
    head["bias"] = jnp.ones(1)
    out = jit_forward(scorer, policy, rollout, 1.0)
    shared_BU = values_from({"head": head}, scorer, rollout, out.hidden_BUD)
    own_BU = values_from({"head": head, "trunk": critic}, scorer, rollout, out.hidden_BUD)
    assert shared_BU.shape == own_BU.shape == (B, T + 1)
    np.testing.assert_array_equal(shared_BU, value_head(head, out.hidden_BUD))
    without_BU = values_from({"head": head, "trunk": critic}, scorer, rollout, None)
    np.testing.assert_array_equal(own_BU, without_BU)
    critic_hidden = jit_forward(scorer, critic, rollout, 1.0).hidden_BUD
    np.testing.assert_allclose(own_BU, value_head(head, critic_hidden), atol=1e-4)
    # The value at index `length` has read the whole response and nothing of the padding.
    ids_BT = jnp.where(rollout.mask_BT > 0, rollout.response_ids_BT, 0)
    again = jit_forward(scorer, policy, rollout._replace(response_ids_BT=ids_BT), 1.0)
    values_BU = value_head(head, again.hidden_BUD)
    last_B = rollout.lengths_B
    rows_B = jnp.arange(B)
    np.testing.assert_allclose(values_BU[rows_B, last_B], shared_BU[rows_B, last_B], atol=1e-4)
    ids_BT = ids_BT.at[rows_B, last_B - 1].add(1)
    changed = jit_forward(scorer, policy, rollout._replace(response_ids_BT=ids_BT), 1.0)
    values_BU = value_head(head, changed.hidden_BUD)
    assert np.all(np.abs(values_BU - shared_BU)[rows_B, last_B] > 1e-4)
    before_B = np.abs(values_BU - shared_BU)[rows_B, last_B - 1]
    np.testing.assert_allclose(before_B, 0, atol=1e-4)


def test_zero_head_gives_zero_values():
    config = tiny_model()
    hidden_BUD = jnp.ones((B, T + 1, config.embed_dim))
    head = {"head": init_value_head(config)}
    values_BU = values_from(head, make_scorer(), make_rollout(0), hidden_BUD)
    np.testing.assert_array_equal(values_BU, np.zeros((B, T + 1)))


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


def test_microbatched_forward_equals_the_whole():
    config = tiny_model()
    params, rollout = trunk_params(config, 11), make_rollout(11, vocab=V, kept=5)
    scorer = make_scorer(Decoder(config), chunk=3)
    score = lambda part: forward(scorer, params, part, jnp.float32(0.7))
    whole = jax.jit(score)(rollout)
    for count in (2, 3):
        parts = jax.jit(functools.partial(by_microbatch, score, count=count))(rollout)
        mask_BT = np.asarray(rollout.mask_BT) > 0
        for got, want in zip(parts[:2], whole[:2], strict=True):
            np.testing.assert_allclose(got[mask_BT], want[mask_BT], atol=1e-5)
