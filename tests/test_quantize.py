"""The sampler's weights in 8 bits, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import row_states, trunk_params
from family_configs import FAMILIES, VOCAB, first_case, model_config
from ppo_jax.config import LoraOptions
from ppo_jax.decoder import Decoder
from ppo_jax.hf_tensors import matrices
from ppo_jax.layers import SIDE_BY_SIDE, Linear
from ppo_jax.lora import attach, init_adapters
from ppo_jax.model import prefill, stack_layers, unembed
from ppo_jax.quantize import quantize, quantize_layers
from ppo_jax.rollout_weights import join, rollout_copy

LLAMA = model_config("llama-gqa")
B, S = 8, 16


def kernels():
    """[in, out] matrices whose columns are hard in different ways."""
    rng = np.random.default_rng(0)
    columns = {
        "normal": rng.normal(size=64),
        "small": 1e-20 * rng.normal(size=64),
        "large": 1e20 * rng.normal(size=64),
        "positive": np.abs(rng.normal(size=64)),
        "negative": -np.abs(rng.normal(size=64)),
        "outlier": np.where(np.arange(64) == 5, -1e3, rng.normal(size=64)),
        "constant": np.full(64, 0.3),
        "zeros": np.zeros(64),
        "one": np.where(np.arange(64) == 9, 0.7, 0.0),
    }
    mixed = np.stack(list(columns.values()), axis=1)
    return {
        "mixed": mixed,
        "one-row": rng.normal(size=(1, 7)),
        "one-column": rng.normal(size=(33, 1)),
        "wide": 0.02 * rng.standard_t(3, size=(128, 96)),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", kernels())
def test_each_weight_is_off_by_half_a_scale_at_most(name, dtype):
    kernel_DF = jnp.asarray(kernels()[name], dtype)
    exact_DF = np.asarray(kernel_DF, np.float64)
    found = jax.jit(quantize)(kernel_DF)
    steps_DF, scale_F = np.asarray(found["kernel"]), np.asarray(found["kernel_scale"], np.float64)
    assert steps_DF.dtype == np.int8 and found["kernel_scale"].dtype == jnp.float32
    assert steps_DF.shape == exact_DF.shape and scale_F.shape == exact_DF.shape[1:]
    largest_F = np.abs(exact_DF).max(axis=0)
    np.testing.assert_allclose(scale_F, largest_F / 127, rtol=1e-6)
    error_DF = np.abs(steps_DF * scale_F - exact_DF)
    assert (error_DF <= 0.50001 * scale_F).all()
    # symmetric: the largest weight of a column is +-127, and -128 never occurs
    np.testing.assert_array_equal(np.abs(steps_DF.astype(int)).max(0), 127 * (largest_F > 0))
    assert ((np.sign(steps_DF) == np.sign(exact_DF)) | (steps_DF == 0)).all()


def test_zero_columns_stay_zero():
    found = quantize(jnp.zeros((4, 3)).at[:, 1].set(2.0))
    np.testing.assert_array_equal(found["kernel_scale"] == 0, [True, False, True])
    np.testing.assert_array_equal(found["kernel"][:, ::2], 0)


def test_what_is_quantised_stays_as_it_is():
    found = quantize(jnp.asarray(kernels()["wide"], jnp.float32))
    again = quantize(found["kernel"].astype(jnp.float32) * found["kernel_scale"][None])
    np.testing.assert_array_equal(again["kernel"], found["kernel"])
    np.testing.assert_allclose(again["kernel_scale"], found["kernel_scale"], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_multiplies_by_the_scaled_steps(dtype, tolerance, bias):
    """int8 values are exact in bfloat16: only activations and the result are rounded."""
    rng = np.random.default_rng(1)
    weights = quantize(jnp.asarray(rng.normal(size=(64, 24)) * np.arange(24)[None], jnp.float32))
    if bias:
        weights["bias"] = jnp.asarray(rng.normal(size=24), jnp.float32)
    x_BSD = jnp.asarray(rng.normal(size=(2, 5, 64)), dtype)
    y_BSF = Linear(Decoder(LLAMA, dtype), 24, bias).apply({"params": weights}, x_BSD)
    assert y_BSF.dtype == dtype
    numbers = {name: np.asarray(x, np.float64) for name, x in weights.items()}
    expected = np.asarray(x_BSD, np.float64) @ (numbers["kernel"] * numbers["kernel_scale"])
    expected = expected + numbers.get("bias", 0.0)
    np.testing.assert_allclose(
        np.asarray(y_BSF, np.float64), expected, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_layers_matrices_are_8_bits_wide(family, dtype):
    config = model_config(first_case(family))
    params = trunk_params(config, seed=2)
    copy = rollout_copy(Decoder(config, dtype), stack_layers(params), "int8")
    plain = rollout_copy(Decoder(config, dtype), params, "unmerged")  # matrices of their own
    plain = {**plain, "layers": [join(layer) for layer in plain["layers"]]}
    found = dict(jax.tree_util.tree_leaves_with_path(copy))
    eight_bits = [path for path, x in found.items() if x.dtype == jnp.int8]
    assert len(eight_bits) == sum("kernel" in m for x in plain["layers"] for m in x.values())
    assert all(path[0].key == "layers" and path[-1].key == "kernel" for path in eight_bits)
    for path, x in jax.tree_util.tree_leaves_with_path(plain):
        if path not in eight_bits:  # embeddings, head, norms and biases
            assert found.pop(path).dtype == x.dtype
        else:
            scale = found[(*path[:-1], jax.tree_util.DictKey("kernel_scale"))]
            assert found.pop(path).shape == x.shape
            assert scale.dtype == jnp.float32
    assert {path[-1].key for path in found} == {"kernel_scale"}
    jax.tree.map(
        np.testing.assert_array_equal,
        {k: v for k, v in copy.items() if k != "layers"},
        {k: v for k, v in plain.items() if k != "layers"},
    )


def test_the_trees_of_the_caller_stay_as_they_are():
    params = trunk_params(LLAMA, seed=3)
    before = jax.tree.map(np.array, params)
    assert quantize_layers(params)["layers"][0]["q"]["kernel"].dtype == jnp.int8
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged_first_and_not_rounded(dtype):
    """The base may be bfloat16 as it is; its sum with the product is rounded once, to 8 bits."""
    lora = LoraOptions(3, None, ("q_proj", "down_proj"))
    rng = np.random.default_rng(4)
    base = jax.tree.map(lambda x: x.astype(dtype), trunk_params(LLAMA, seed=4))
    adapters = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32),
        init_adapters(LLAMA, lora, jax.random.key(0)),
    )
    copy = rollout_copy(Decoder(LLAMA, dtype, lora_scale=0.5), attach(base, adapters), "int8")
    for layer, under, beside in zip(
        copy["layers"], base["layers"], adapters["layers"], strict=True
    ):
        exact = {}
        for module in ("q", "k", "v", "o", "gate", "up", "down"):
            exact[module] = np.asarray(under[module]["kernel"], np.float64)
            if module in beside:
                a, b = (np.asarray(beside[module][n], np.float64) for n in ("lora_a", "lora_b"))
                exact[module] = exact[module] + 0.5 * a @ b
        assert {name for name, m in layer.items() if "kernel" in m} == {
            "qkv",
            "o",
            "up_gate",
            "down",
        }
        for whole, parts in {**SIDE_BY_SIDE, "o": ("o",), "down": ("down",)}.items():
            assert layer[whole].keys() == {"kernel", "kernel_scale"}
            exact_DF = np.concatenate([exact[module] for module in parts], axis=1)
            scale_F = np.asarray(layer[whole]["kernel_scale"], np.float64)
            steps_DF = np.asarray(layer[whole]["kernel"], np.float64)
            assert (np.abs(steps_DF * scale_F - exact_DF) <= 0.501 * scale_F).all(), whole


@functools.partial(jax.jit, static_argnums=0)
def forward(decoder, params, ids_BS, mask_BS):
    hidden_BSD = row_states(decoder, params, ids_BS, mask_BS)
    return hidden_BSD, unembed(decoder, params, hidden_BSD)


def batch():
    ids_BS = np.random.default_rng(5).integers(0, VOCAB, (B, S))
    return jnp.asarray(ids_BS), jnp.ones((B, S), bool)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_logits_stay_close(family):
    """A weight's error is uniform in half a scale: of deviation max|w| / (127 sqrt(12)), 0.6 % of
    a weight's own where the largest of a column is 2.6 deviations. Each matrix so adds 0.6 % to
    its output, the matrices of the network in quadrature; doubled for what the nonlinearities add.
    """
    config = model_config(first_case(family))
    params, decoder = trunk_params(config, seed=6), Decoder(config, remat="none")
    _, exact_BSV = forward(decoder, rollout_copy(decoder, params), *batch())
    _, logits_BSV = forward(decoder, rollout_copy(decoder, params, "int8"), *batch())
    exact_BSV, logits_BSV = (np.asarray(x, np.float64) for x in (exact_BSV, logits_BSV))
    relative = np.sqrt(((logits_BSV - exact_BSV) ** 2).mean() / exact_BSV.var())
    count = config.num_layers * len(matrices(config))
    assert 1e-4 < relative <= 2 * 0.006 * count**0.5
    assert (logits_BSV.argmax(-1) == exact_BSV.argmax(-1)).mean() > 0.9


def test_prefill_reads_8_bits_as_the_whole_forward_does():
    decoder = Decoder(LLAMA, remat="none")
    copy = rollout_copy(decoder, trunk_params(LLAMA, seed=7), "int8")
    ids_BS, mask_BS = batch()
    hidden_BD, _ = jax.jit(lambda p: prefill(decoder, p, ids_BS, mask_BS))(copy)
    np.testing.assert_allclose(
        hidden_BD, forward(decoder, copy, ids_BS, mask_BS)[0][:, -1], atol=2e-5
    )
