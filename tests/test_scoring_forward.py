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
from ppo_jax.scoring import forward, values_from
from scoring_builders import B, T, V, make_rollout, make_scorer


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
