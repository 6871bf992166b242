"""The training forward around the token statistics: which state scores which token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import tiny_model, trunk_params
from ppo_jax.decoder import Decoder
from ppo_jax.microbatch import by_microbatch
from ppo_jax.model import init_value_head, stack_layers, value_head
from ppo_jax.reward import kl_estimate
from ppo_jax.scoring import forward, read, values_from
from scoring_builders import B, T, V, make_rollout, make_scorer


@functools.partial(jax.jit, static_argnums=0)
def jit_forward(scorer, params, rollout, temperature):
    return forward(scorer, params, read(rollout), temperature)


def states(out, rollout):
    """Hidden states [B, T + 1, D] before each token and after the last: rows start at column 0."""
    first_B = np.asarray(rollout.prompt_mask_BP).sum(axis=1) - 1
    columns_BU = first_B[:, None] + np.arange(rollout.response_ids_BT.shape[1] + 1)[None]
    return np.take_along_axis(np.asarray(out.hidden_ZND), columns_BU[..., None], axis=1)


def test_hidden_states_stand_before_each_token_and_after_the_last():
    config = tiny_model()
    params, scorer = trunk_params(config, 6), make_scorer(Decoder(config))
    rollout = make_rollout(6, vocab=config.vocab_size)
    hidden_BUD = states(jit_forward(scorer, params, rollout, 1.0), rollout)
    assert hidden_BUD.shape == (B, T + 1, config.embed_dim)
    # Each row alone, without padding: token t is predicted by the state at prompt + t - 1.
    for b in range(3):
        length = int(rollout.lengths_B[b])
        alone = rollout._replace(
            prompt_ids_BP=rollout.prompt_ids_BP[b : b + 1][:, rollout.prompt_mask_BP[b]],
            prompt_mask_BP=jnp.ones((1, int(rollout.prompt_mask_BP[b].sum())), bool),
            response_ids_BT=rollout.response_ids_BT[b : b + 1, :length],
            mask_BT=jnp.ones((1, length)),
            lengths_B=rollout.lengths_B[b : b + 1],
        )
        expected_UD = states(jit_forward(scorer, params, alone, 1.0), alone)[0]
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
        out = forward(scorer, params, read(rollout), temperature)
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
    out = jit_forward(scorer, policy, rollout, 1.0)
    reading = read(rollout)
    shared_BT, final_B = values_from({"head": head}, scorer, reading, out.hidden_ZND)
    own = values_from({"head": head, "trunk": critic}, scorer, reading, out.hidden_ZND)
    without = values_from({"head": head, "trunk": critic}, scorer, reading, None)
    jax.tree.map(np.testing.assert_array_equal, own, without)
    real_BT, last_B, rows_B = np.asarray(rollout.mask_BT) > 0, rollout.lengths_B, np.arange(B)
    for (values_BT, last), trunk in (((shared_BT, final_B), policy), (own, critic)):
        expected_BU = value_head(head, states(jit_forward(scorer, trunk, rollout, 1.0), rollout))
        np.testing.assert_allclose(values_BT, np.where(real_BT, expected_BU[:, :-1], 0), atol=1e-4)
        np.testing.assert_allclose(last, expected_BU[rows_B, last_B], atol=1e-4)
    # It has read the whole response and nothing of the padding.
    same_BT = jnp.where(rollout.mask_BT > 0, rollout.response_ids_BT, 0)
    for ids_BT, moves in ((same_BT, False), (same_BT.at[rows_B, last_B - 1].add(1), True)):
        again = rollout._replace(response_ids_BT=ids_BT)
        hidden = jit_forward(scorer, policy, again, 1.0).hidden_ZND
        values_BT, last = values_from({"head": head}, scorer, read(again), hidden)
        assert np.all((np.abs(last - final_B) > 1e-4) == moves)
        np.testing.assert_allclose(values_BT, shared_BT, atol=1e-4)


def test_zero_head_gives_zero_values():
    config = tiny_model()
    reading = read(make_rollout(0))
    hidden_ZND = jnp.ones((*reading.stream.ids_ZN.shape, config.embed_dim))
    values = values_from({"head": init_value_head(config)}, make_scorer(), reading, hidden_ZND)
    assert not np.any(values[0]) and not np.any(values[1])


def test_microbatched_forward_equals_the_whole():
    config = tiny_model()
    params, rollout = trunk_params(config, 11), make_rollout(11, vocab=V, kept=5)
    scorer = make_scorer(Decoder(config), chunk=3)
    score = lambda part: forward(scorer, params, read(part), jnp.float32(0.7))[:2]
    whole = jax.jit(score)(rollout)
    for count in (2, 3):
        parts = jax.jit(functools.partial(by_microbatch, score, count=count))(rollout)
        mask_BT = np.asarray(rollout.mask_BT) > 0
        for got, want in zip(parts, whole, strict=True):
            np.testing.assert_allclose(got[mask_BT], want[mask_BT], atol=1e-5)
