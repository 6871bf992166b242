"""Every family: one forward, whatever the padding, the cache, the layout of layers or the dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import row_states
from decoder_oracle import slow_hidden, slow_logits
from family_configs import FAMILIES, IDS, RICH, WINDOW, model_config
from family_models import family_model, random_rows
from ppo_jax import kv_cache
from ppo_jax.decoder import Decoder
from ppo_jax.model import (
    decode_step,
    prefill,
    stack_layers,
    unembed,
    unstack_layers,
)
from ppo_jax.rollout_weights import rollout_copy
from ppo_jax.rope import positions_from_mask

B, S = 3, 17  # one shape of everything: each case compiles its trunk once
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def jit_trunk(decoder):
    return jax.jit(functools.partial(row_states, decoder))


jit_prefill = jax.jit(prefill, static_argnums=0)
jit_decode_step = jax.jit(decode_step, static_argnums=0)


@pytest.mark.parametrize("id_", IDS)
def test_hidden_states_and_logits_equal_float64_numpy(id_):
    """Rows of mixed length, padded on both sides, the shortest of one token."""
    config, params = family_model(id_)
    lengths = [15, 9, 1]
    ids_BS = np.random.default_rng(0).integers(0, config.vocab_size, size=(B, S))
    column = np.arange(S)[None] - np.array([0, 4, 7])[:, None]
    mask_BS = (column >= 0) & (column < np.array(lengths)[:, None])
    decoder = Decoder(config)
    hidden_BSD = jit_trunk(decoder)(params, ids_BS, mask_BS)
    logits_BSV = np.asarray(unembed(decoder, params, hidden_BSD))
    for ids_S, mask_S, hidden_SD, logits_SV in zip(
        ids_BS, mask_BS, np.asarray(hidden_BSD), logits_BSV, strict=True
    ):
        slow_SD = slow_hidden(config, params, ids_S[mask_S])
        np.testing.assert_allclose(hidden_SD[mask_S], slow_SD, atol=3e-5)
        np.testing.assert_allclose(
            logits_SV[mask_S], slow_logits(config, params, slow_SD), atol=1e-4
        )


def decoded(decoder, params, rows):
    """Hidden states [B, 1 + T, D] of prefill and of each step of decoding."""
    mask_BS, P = jnp.asarray(rows.mask_BS), rows.prompt
    hidden_BD, written = jit_prefill(decoder, params, rows.ids_BS[:, :P], mask_BS[:, :P])
    caches = kv_cache.empty(decoder.config, decoder.compute, B, (P + 2, S - P - 2))
    caches = kv_cache.write_prompts(caches, written, jnp.arange(B))
    states, positions_BS = [hidden_BD], positions_from_mask(mask_BS)
    for column in range(P, S):
        visible_BS = mask_BS & (jnp.arange(S)[None] <= column)
        token_B, position_B = rows.ids_BS[:, column], positions_BS[:, column]
        hidden_BD, caches = jit_decode_step(
            decoder,
            params,
            token_B,
            position_B,
            visible_BS,
            caches,
            jnp.full(B, column),
            jnp.int32(column >= P + 2),
        )
        states.append(hidden_BD)
    return np.stack(states, axis=1)


@pytest.mark.parametrize("lengths", [[9, 1, 4], [1, 1, 1]], ids=["mixed", "one-token"])
@EVERY_FAMILY
def test_prefill_and_decoding_equal_the_trunk(family, lengths):
    """Left-padded prompts, windows shorter than a prompt and than what follows it."""
    config, params = family_model(RICH[family])
    decoder, T = Decoder(config), S - max(lengths)
    assert config.window is None or config.window < T
    rows = random_rows(config, lengths, T)
    whole_BSD = jit_trunk(decoder)(params, rows.ids_BS, rows.mask_BS)
    states_BTD = decoded(decoder, params, rows)
    np.testing.assert_allclose(states_BTD, whole_BSD[:, rows.prompt - 1 :], atol=1e-5)


@EVERY_FAMILY
def test_padding_changes_nothing(family):
    """More columns on the left, or on the right, whatever ids stand there."""
    config, params = family_model(RICH[family])
    rng, lengths = np.random.default_rng(4), np.array([12, 1, 7])
    tokens_BS, column_S = rng.integers(0, config.vocab_size, size=(B, S)), np.arange(S)
    found = []
    for left in (0, 1, 5):
        mask_BS = (column_S[None] >= left) & (column_S[None] < (left + lengths)[:, None])
        noise_BS = rng.integers(0, config.vocab_size, size=(B, S))
        ids_BS = np.where(mask_BS, np.roll(tokens_BS, left, axis=1), noise_BS)
        hidden_BSD = np.asarray(jit_trunk(Decoder(config))(params, ids_BS, mask_BS))
        found.append(hidden_BSD[mask_BS])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@EVERY_FAMILY
def test_scan_and_remat_agree_in_values_and_gradients(family):
    config, params = family_model(RICH[family])
    rows = random_rows(config, [6, 1], 5)
    shape = (*rows.ids_BS.shape, config.embed_dim)
    weight_BSD = jax.random.normal(jax.random.key(6), shape) * rows.mask_BS[..., None]

    @functools.partial(jax.jit, static_argnums=0)
    def run(remat, params):
        hidden = lambda p: row_states(Decoder(config, remat=remat), p, rows.ids_BS, rows.mask_BS)
        loss = lambda p: jnp.sum(jnp.where(rows.mask_BS[..., None], hidden(p) * weight_BSD, 0.0))
        return jax.value_and_grad(lambda p: loss(p) / 100)(params)

    value, gradients = run("none", params)
    dots = family == "gemma3_text"  # what is saved is no matter of the family: one shows it
    for remat, layout in [("full", stack_layers), *[("dots", stack_layers)] * dots]:
        other, others = run(remat, layout(params))
        np.testing.assert_allclose(other, value, rtol=1e-5, atol=1e-6)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-6, err_msg=remat)
        jax.tree.map(close, unstack_layers(others), gradients)


@EVERY_FAMILY
def test_bfloat16_computes_the_same_model(family):
    """Rounding to 8 bits of mantissa moves logits by some per cent of their spread, no more; the
    sampler's copy, cast once, computes what the training forward casts at every use."""
    config, params = family_model(RICH[family])
    rows = random_rows(config, [9, 1, 4], 8)
    exact, rounded = Decoder(config), Decoder(config, dtype="bfloat16")
    logits = lambda d, p: unembed(d, p, jit_trunk(d)(p, rows.ids_BS, rows.mask_BS))
    logits_BSV, rounded_BSV = logits(exact, params), logits(rounded, params)
    assert rounded_BSV.dtype == jnp.float32
    error = np.abs(rounded_BSV - logits_BSV)[rows.mask_BS]
    spread = np.std(np.asarray(logits_BSV)[rows.mask_BS])
    print(f"bfloat16 {family}: mean {error.mean() / spread:.4f}, max {error.max() / spread:.3f}")
    assert 1e-5 < error.mean() / spread < 0.03 and error.max() / spread < 0.3
    copied_BSV = logits(rounded, rollout_copy(rounded, params))
    np.testing.assert_array_equal(copied_BSV[rows.mask_BS], rounded_BSV[rows.mask_BS])


@EVERY_FAMILY
def test_decoding_in_bfloat16_is_the_forward_in_bfloat16(family):
    """The sampler's distribution is the trainer's but for rounding, so that ratios stay near 1."""
    config, params = family_model(RICH[family])
    decoder = Decoder(config, dtype="bfloat16")
    rows = random_rows(config, [9, 1, 4], 8)
    whole_BSD = jit_trunk(decoder)(params, rows.ids_BS, rows.mask_BS)[:, rows.prompt - 1 :]
    states_BTD = decoded(decoder, params, rows)
    error = np.abs(np.float32(states_BTD) - np.float32(whole_BSD))
    print(f"bfloat16 decode {family}: mean {error.mean():.4f}, max {error.max():.3f}")
    assert error.mean() < 0.02 and error.max() < 0.3


@pytest.mark.parametrize("id_", [i for i in IDS if model_config(i).window is not None])
def test_a_window_hides_what_lies_before_it(id_):
    """Another first token changes the states that see it, through layers if need be, and none
    further on than all windows together reach."""
    config, params = family_model(id_)
    assert config.window <= WINDOW
    ids_BS = np.random.default_rng(3).integers(0, config.vocab_size, size=(B, S))
    ids_BS[1] = ids_BS[0]
    ids_BS[1, 0] = (ids_BS[0, 0] + 1) % config.vocab_size
    both_BSD = jit_trunk(Decoder(config))(params, ids_BS, np.ones((B, S), bool))
    change_S = np.abs(both_BSD[0] - both_BSD[1]).max(axis=-1)
    assert change_S[1 : config.window].min() > 1e-4
    reach = config.num_layers * (config.window - 1)
    if all(config.is_local):
        np.testing.assert_array_equal(change_S[reach + 1 :], 0.0)
        assert change_S[config.window] > 1e-6  # by way of a second layer
    else:
        assert change_S[reach + 1 :].max() > 1e-6
