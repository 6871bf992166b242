"""The decoder: one forward whatever the layout of layers, remat, padding or cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import random_prompts, row_states, tiny_model, trunk_params
from decoder_oracle import slow_hidden
from family_configs import FAMILIES, RICH
from family_models import family_model
from ppo_jax import kv_cache
from ppo_jax.config import RopeScaling
from ppo_jax.decoder import Decoder
from ppo_jax.hf_tensors import layer_slots
from ppo_jax.model import (
    cast_weights,
    decode_step,
    init_trunk,
    init_value_head,
    prefill,
    stack_layers,
    unembed,
    unstack_layers,
    value_head,
)
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.rope import positions_from_mask

LLAMA3 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
)
CONFIGS = {
    "gqa": tiny_model(),
    "mha": tiny_model(num_kv_heads=4),
    "mqa": tiny_model(num_kv_heads=1),
    "untied": tiny_model(tie_embeddings=False),
    "llama3": tiny_model(rope_scaling=LLAMA3, rope_theta=1000.0),
    "wide heads": tiny_model(head_dim=16),
    "linear": tiny_model(rope_scaling=RopeScaling("linear", 3.0)),
    "window": tiny_model(window=3, local_layers=(False, True)),
}


@functools.cache
def jit_trunk(decoder):
    return jax.jit(functools.partial(row_states, decoder))


jit_prefill = jax.jit(prefill, static_argnums=0)
jit_decode_step = jax.jit(decode_step, static_argnums=0)


def prefilled(decoder, params, ids_BP, mask_BP, widths):
    """State after the prompts, and caches of these blocks that hold them."""
    hidden_BD, written = jit_prefill(decoder, params, ids_BP, mask_BP)
    B = ids_BP.shape[0]
    caches = kv_cache.empty(decoder.config, decoder.compute, B, widths)
    return hidden_BD, kv_cache.write_prompts(caches, written, jnp.arange(B))


def random_sequences(B, P, T, seed, vocab):
    """Prompts of mixed length followed by T tokens, all real."""
    prompts = random_prompts(B, P, seed, vocab)
    tail_BT = jax.random.randint(jax.random.key(seed), (B, T), 0, vocab)
    ids_BS = jnp.concatenate([prompts.ids_BP, tail_BT], axis=1)
    mask_BS = jnp.concatenate([prompts.mask_BP, jnp.ones((B, T), bool)], axis=1)
    return prompts, ids_BS, mask_BS


@pytest.mark.parametrize("name", CONFIGS)
def test_trunk_matches_float64_numpy_at_any_padding(name):
    config, B, P, T = CONFIGS[name], 5, 6, 4
    params = trunk_params(config, seed=1)
    _, ids_BS, mask_BS = random_sequences(B, P, T, 2, config.vocab_size)
    hidden_BSD = np.asarray(jit_trunk(Decoder(config, remat="none"))(params, ids_BS, mask_BS))
    for ids_S, mask_S, hidden_SD in zip(ids_BS, np.asarray(mask_BS), hidden_BSD, strict=True):
        slow = slow_hidden(config, params, np.asarray(ids_S)[mask_S])
        np.testing.assert_allclose(hidden_SD[mask_S], slow, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_unembed_uses_the_head_there_is(tied):
    config = tiny_model(tie_embeddings=tied)
    params = trunk_params(config, seed=3)
    hidden_BD = jax.random.normal(jax.random.key(0), (4, config.embed_dim))
    kernel = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
    expected = np.asarray(hidden_BD, np.float64) @ np.asarray(kernel, np.float64)
    logits_BV = unembed(Decoder(config), params, hidden_BD)
    assert logits_BV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BV, expected, atol=1e-5)


def test_scan_unroll_and_every_remat_agree_in_values_and_gradients():
    config = tiny_model()
    params = trunk_params(config, seed=4)
    _, ids_BS, mask_BS = random_sequences(4, 5, 4, 5, config.vocab_size)
    weight_BSD = jax.random.normal(jax.random.key(6), (*ids_BS.shape, config.embed_dim))

    def loss(params, remat):
        hidden = row_states(Decoder(config, remat=remat), params, ids_BS, mask_BS)
        return jnp.sum(jnp.where(mask_BS[..., None], hidden * weight_BSD, 0.0)) / 100, hidden

    results = {}
    for remat in ("none", "dots", "full"):
        for layout in (unstack_layers, stack_layers):
            run = jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat), has_aux=True))
            (_, hidden), grads = run(layout(params))
            results[remat, layout.__name__] = hidden[mask_BS], unstack_layers(grads)
    expected = results["none", "unstack_layers"]
    for case, result in results.items():
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=3e-6, err_msg=str(case)),
            result,
            expected,
        )


@pytest.mark.parametrize("name", ["gqa", "mqa", "window"])
def test_prefill_and_decoding_equal_the_trunk(name):
    config, T = CONFIGS[name], 5
    decoder = Decoder(config)
    params = trunk_params(config, seed=7)
    for B, P, seed in ((5, 6, 8), (3, 1, 9), (4, 9, 10))[: 3 if name == "gqa" else 1]:
        prompts, ids_BS, mask_BS = random_sequences(B, P, T, seed, config.vocab_size)
        whole_BSD = jit_trunk(decoder)(params, ids_BS, mask_BS)
        hidden_BD, caches = prefilled(
            decoder, params, prompts.ids_BP, prompts.mask_BP, (P + 1, T - 1)
        )
        np.testing.assert_allclose(hidden_BD, whole_BSD[:, P - 1], atol=1e-5)
        positions_BS = positions_from_mask(mask_BS)
        for column in range(P, P + T):
            visible_BS = mask_BS & (jnp.arange(P + T)[None] <= column)
            token_B, position_B = ids_BS[:, column], positions_BS[:, column]
            at_B, reach = jnp.full(B, column), int(column > P)
            hidden_BD, caches = jit_decode_step(
                decoder, params, token_B, position_B, visible_BS, caches, at_B, reach
            )
            np.testing.assert_allclose(hidden_BD, whole_BSD[:, column], atol=1e-5)


def test_columns_behind_the_cursor_are_never_read():
    config, B, P, T = tiny_model(), 3, 4, 3
    decoder, params = Decoder(config), trunk_params(config, seed=11)
    prompts, ids_BS, mask_BS = random_sequences(B, P, T, 12, config.vocab_size)
    _, caches = prefilled(decoder, params, prompts.ids_BP, prompts.mask_BP, (P + T,))
    spoilt = jax.tree.map(lambda x: x.at[:, :, P + 1 :].set(1e3), caches)
    visible_BS = mask_BS & (jnp.arange(P + T)[None] <= P)
    positions_B = positions_from_mask(mask_BS)[:, P]
    at_B = jnp.full(B, P)
    states = [
        jit_decode_step(decoder, params, ids_BS[:, P], positions_B, visible_BS, c, at_B, 0)[0]
        for c in (caches, spoilt)
    ]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("extra", [1, 3, 8])
def test_more_left_padding_changes_nothing(extra):
    config, B, P, T = tiny_model(), 6, 5, 3
    decoder, params = Decoder(config), trunk_params(config, seed=13)
    prompts, ids_BS, mask_BS = random_sequences(B, P, T, 14, config.vocab_size)
    wider = lambda x: jnp.pad(x, ((0, 0), (extra, 0)))
    hidden_BSD = jit_trunk(decoder)(params, ids_BS, mask_BS)
    padded_BSD = jit_trunk(decoder)(params, wider(ids_BS), wider(mask_BS))[:, extra:]
    np.testing.assert_allclose(padded_BSD[mask_BS], hidden_BSD[mask_BS], atol=1e-5)
    ids_BP, mask_BP = wider(prompts.ids_BP), wider(prompts.mask_BP)
    padded_BD, _ = jit_prefill(decoder, params, ids_BP, mask_BP)
    np.testing.assert_allclose(padded_BD, hidden_BSD[:, P - 1], atol=1e-5)


def test_ids_on_padding_and_right_of_a_position_change_nothing_before_it():
    config, B, P, T = tiny_model(), 6, 5, 6
    decoder, params = Decoder(config), trunk_params(config, seed=15)
    _, ids_BS, mask_BS = random_sequences(B, P, T, 16, config.vocab_size)
    hidden_BSD = jit_trunk(decoder)(params, ids_BS, mask_BS)
    ended_BS = mask_BS & (jnp.arange(P + T)[None] < P + 2)  # a response of two tokens, padded right
    other_BS = (ids_BS + jax.random.randint(jax.random.key(1), ids_BS.shape, 1, 97)) % 97
    changed_BSD = jit_trunk(decoder)(params, jnp.where(ended_BS, ids_BS, other_BS), ended_BS)
    np.testing.assert_allclose(changed_BSD[ended_BS], hidden_BSD[ended_BS], atol=1e-6)


def test_stack_and_unstack_are_inverse():
    params = trunk_params(tiny_model(num_layers=3), seed=17)
    stacked = stack_layers(params)
    assert stacked["layers"]["q"]["kernel"].shape == (3, 32, 32)
    np.testing.assert_array_equal(
        stacked["layers"]["down"]["kernel"][2], params["layers"][2]["down"]["kernel"]
    )
    assert stack_layers(stacked) is stacked and unstack_layers(params) is params
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)


@pytest.mark.parametrize("family", FAMILIES)
def test_cast_keeps_norms_in_float32(family):
    config, params = family_model(RICH[family])
    decoder = Decoder(config, dtype="bfloat16")
    for cast in (cast_weights(decoder, params), rollout_copy(decoder, stack_layers(params))):
        assert isinstance(cast["layers"], list)
        for path, x in jax.tree_util.tree_leaves_with_path(cast):
            expected = jnp.float32 if "norm" in path[-2].key else jnp.bfloat16
            assert x.dtype == expected, jax.tree_util.keystr(path)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_compute_gives_float32_logits_of_the_same_model(tied):
    config = tiny_model(tie_embeddings=tied)
    params = trunk_params(config, seed=19)
    _, ids_BS, mask_BS = random_sequences(6, 5, 6, 20, config.vocab_size)
    exact = unembed(Decoder(config), params, jit_trunk(Decoder(config))(params, ids_BS, mask_BS))
    decoder = Decoder(config, dtype="bfloat16")
    hidden_BSD = jit_trunk(decoder)(params, ids_BS, mask_BS)
    assert hidden_BSD.dtype == jnp.bfloat16
    logits_BSV = unembed(decoder, params, hidden_BSD)
    assert logits_BSV.dtype == jnp.float32
    error = np.abs(logits_BSV - exact)[np.asarray(mask_BS)]
    assert error.mean() < 0.03 * np.std(exact) and error.max() < 0.3 * np.std(exact)
    # The rollout copy, cast once, computes what the training forward casts at every use.
    copied_BSD = jit_trunk(decoder)(rollout_copy(decoder, params), ids_BS, mask_BS)
    np.testing.assert_array_equal(copied_BSD[mask_BS], hidden_BSD[mask_BS])


def test_random_weights_have_the_shapes_and_spread_of_the_config():
    config = tiny_model(tie_embeddings=False, embed_dim=64, mlp_dim=96, init_std=0.05)
    params = init_trunk(config, jax.random.key(0))
    layer = {name: params["layers"][0][name]["kernel"].shape for name in ("q", "k", "v", "o")}
    assert layer == {"q": (64, 32), "k": (64, 16), "v": (64, 16), "o": (32, 64)}
    assert params["embed"]["embedding"].shape == (97, 64)
    assert params["lm_head"]["kernel"].shape == (64, 97)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        assert x.dtype == jnp.float32
        if path[-1].key == "scale":
            np.testing.assert_array_equal(x, 1.0)
        else:
            assert abs(float(x.std()) / 0.05 - 1) < 0.15, jax.tree_util.keystr(path)
    first, second = (params["layers"][i]["q"]["kernel"] for i in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_have_the_leaves_of_a_checkpoint(family):
    config, _ = family_model(RICH[family])
    params = init_trunk(config, jax.random.key(0))
    leaves = {
        tuple(part.key for part in path): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(params["layers"][0])
    }
    slots = layer_slots(config).values()
    stored = {s.path: s.layout.to_tree(np.empty(s.shape)).shape for s in slots}
    assert leaves == stored
    neutral = 0.0 if config.norm_plus_one else 1.0
    assert np.all(params["layers"][1]["attn_norm"]["scale"] == neutral)
    assert ("lm_head" in params) != config.tie_embeddings
    assert ("positions" in params) == (config.position == "learned")


def test_value_head_starts_at_zero_and_is_linear():
    config = tiny_model()
    head = init_value_head(config)
    hidden_BD = jax.random.normal(jax.random.key(0), (5, config.embed_dim))
    assert np.all(value_head(head, hidden_BD) == 0)
    head = {"kernel": jnp.arange(32.0)[:, None]}
    values_B = value_head(head, hidden_BD.astype(jnp.bfloat16))
    assert values_B.dtype == jnp.float32
    rounded_BD = np.asarray(hidden_BD.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(values_B, rounded_BD @ np.arange(32.0), rtol=1e-5, atol=1e-4)
