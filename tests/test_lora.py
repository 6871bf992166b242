"""Low-rank adapters: which matrices, how they start, beside and within the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_builders
from builders import row_states
from family_configs import FAMILIES, VOCAB, first_case, model_config
from peft_builders import LLAMA
from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.decoder import Decoder, lora_scale
from ppo_jax.errors import ConfigError
from ppo_jax.layers import Linear
from ppo_jax.lora import adapted_modules, attach, init_adapters, merge
from ppo_jax.model import init_trunk, stack_layers, unstack_layers
from ppo_jax.rollout_weights import rollout_copy

ALL = ("q", "k", "v", "o", "gate", "up", "down")
IDS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 9)))
MASK = jnp.asarray(np.arange(9) >= np.array([[0], [4]]))


def random_adapters(config: ModelConfig, lora: LoraOptions):
    return jax.tree.map(jnp.asarray, peft_builders.random_adapters(config, lora, scale=0.2))


@functools.cache
def base_params(config: ModelConfig):
    return init_trunk(config, jax.random.key(5))


def hidden(config, params, scale=2.0, dtype="float32"):
    decoder = Decoder(config, dtype, "none", lora_scale=scale)
    return np.asarray(run(decoder, params))[np.asarray(MASK)]


@functools.partial(jax.jit, static_argnums=0)
def run(decoder, params):
    return row_states(decoder, params, IDS, MASK)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*",), ALL),
        (("q_proj", "v_proj"), ("q", "v")),
        (("v_proj", "q_proj", "q_*"), ("q", "v")),  # the network's order, each once
        (("self_attn.o_proj",), ("o",)),
        (("mlp.*",), ("gate", "up", "down")),
        (("*_proj",), ALL),
        (("[qk]_proj",), ("q", "k")),
    ],
)
def test_patterns(patterns, expected):
    assert adapted_modules(LLAMA, patterns) == expected


def test_names_are_the_familys_own():
    gpt2, neox = model_config(first_case("gpt2")), model_config(first_case("gpt_neox"))
    assert adapted_modules(gpt2, ("c_proj",)) == ("o", "down")
    assert adapted_modules(gpt2, ("mlp.c_proj",)) == ("down",)
    assert adapted_modules(gpt2, ("attn.*",)) == ("qkv", "o")
    assert adapted_modules(neox, ("query_key_value", "dense")) == ("qkv", "o")
    assert adapted_modules(neox, ("dense_*",)) == ("up", "down")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("q_prj",), ["model.lora.targets=q_prj", "nearest: q_proj"]),
        (("q_proj", "mlp.up"), ["model.lora.targets=mlp.up", "nearest: mlp.up_proj"]),
        (("Q_PROJ",), ["model.lora.targets=Q_PROJ"]),  # case counts
        (("lm_head",), ["model.lora.targets=lm_head", "self_attn.q_proj"]),
        (("input_layernorm",), ["model.lora.targets=input_layernorm"]),
        ((), ["model.lora.targets is empty", "mlp.down_proj"]),
    ],
)
def test_a_pattern_that_picks_nothing(patterns, words):
    with pytest.raises(ConfigError) as error:
        adapted_modules(LLAMA, patterns)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_policy_starts_as_the_base(family):
    config = model_config(first_case(family))
    params = base_params(config)
    adapters = init_adapters(config, LoraOptions(3), jax.random.key(3))
    whole = attach(params, adapters)
    for layer, beside in zip(whole["layers"], adapters["layers"], strict=True):
        assert {module for module in layer if "kernel" in layer[module]} == beside.keys()
        for module in beside:
            sizes = layer[module]["kernel"].shape
            assert beside[module]["lora_a"].shape == (sizes[0], 3)
            assert beside[module]["lora_b"].shape == (3, sizes[1])
            assert not beside[module]["lora_b"].any()
    # the compiler may round the two programs differently; a matrix by itself is the same bits
    np.testing.assert_allclose(hidden(config, whole), hidden(config, params), atol=5e-6)
    x_BSD = jax.random.normal(jax.random.key(4), (2, 3, config.embed_dim))
    for module in ("qkv", "up") if config.fused_qkv else ("q", "up"):
        weights = whole["layers"][1][module]
        size = weights["kernel"].shape[1]
        matrix = Linear(Decoder(config, lora_scale=2.0), size, "bias" in weights)
        base = params["layers"][1][module]
        np.testing.assert_array_equal(
            matrix.apply({"params": weights}, x_BSD), matrix.apply({"params": base}, x_BSD)
        )


def test_a_is_uniform_as_peft_draws_it():
    config = ModelConfig(embed_dim=256, mlp_dim=1024, num_layers=2)
    adapters = init_adapters(config, LoraOptions(8), jax.random.key(7))
    draws = {}
    for i, layer in enumerate(adapters["layers"]):
        for module, parts in layer.items():
            a = np.asarray(parts["lora_a"], np.float64)
            assert parts["lora_a"].dtype == parts["lora_b"].dtype == jnp.float32
            bound = len(a) ** -0.5  # kaiming_uniform(a=sqrt(5)) of a matrix with `in` inputs
            assert 0.98 * bound < np.abs(a).max() <= bound
            # the standard error of a uniform's variance is var * sqrt(0.8 / n)
            np.testing.assert_allclose(a.var(), bound**2 / 3, rtol=5 * (0.8 / a.size) ** 0.5)
            assert abs(a.mean()) < 5 * (bound**2 / 3 / a.size) ** 0.5
            draws[i, module] = a[:16].tobytes()
    assert len(set(draws.values())) == len(draws)  # no two start alike
    again = init_adapters(config, LoraOptions(8), jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, adapters, again)
    picked = init_adapters(config, LoraOptions(8, None, ("up_proj",)), jax.random.key(7))
    assert [list(layer) for layer in picked["layers"]] == [["up"], ["up"]]


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        (LoraOptions(), 1.0),
        (LoraOptions(8), 2.0),  # alpha None: 2 x rank
        (LoraOptions(8, 8.0), 1.0),
        (LoraOptions(16, 4.0), 0.25),
        (LoraOptions(4, 0.0), 0.0),
    ],
)
def test_scale_is_alpha_over_rank(lora, scale):
    assert lora_scale(lora) == scale


def test_attach_copies_nothing():
    params, adapters = base_params(LLAMA), random_adapters(LLAMA, LoraOptions(3))
    for base, beside in ((params, adapters), (stack_layers(params), stack_layers(adapters))):
        before = jax.tree.structure(base), jax.tree.structure(beside)
        whole = attach(base, beside)
        kept = {id(x) for x in jax.tree.leaves(base)} | {id(x) for x in jax.tree.leaves(beside)}
        assert {id(x) for x in jax.tree.leaves(whole)} == kept
        assert (jax.tree.structure(base), jax.tree.structure(beside)) == before
    assert attach(params, None) is params
    assert attach(None, params) is params
    assert attach(None, None) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_attached_is_the_sum_of_both(family):
    """Against kernels with the product added in float64."""
    config = model_config(first_case(family))
    params, adapters = base_params(config), random_adapters(config, LoraOptions(3))
    exact = jax.tree.map(np.asarray, params)
    for layer, beside in zip(exact["layers"], adapters["layers"], strict=True):
        for module, parts in beside.items():
            a, b = (np.asarray(parts[name], np.float64) for name in ("lora_a", "lora_b"))
            layer[module]["kernel"] = (layer[module]["kernel"] + 2.0 * a @ b).astype(np.float32)
    found = hidden(config, attach(params, adapters))
    np.testing.assert_allclose(found, hidden(config, exact), atol=2e-4)
    assert np.abs(found - hidden(config, params)).max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text"])  # the last: mixed layers
def test_a_scan_gives_what_the_list_does(family):
    config = model_config(first_case(family))
    params, adapters = base_params(config), random_adapters(config, LoraOptions(3))
    stacked = attach(stack_layers(params), stack_layers(adapters))
    found = hidden(config, stacked)
    np.testing.assert_allclose(found, hidden(config, attach(params, adapters)), atol=2e-5)


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
@pytest.mark.parametrize("layout", ["list", "stacked"])
def test_merge_is_float32(make, layout):
    params, adapters = base_params(LLAMA), random_adapters(LLAMA, LoraOptions(3, None, ("[qo]_*",)))
    shape = (lambda tree: tree) if layout == "list" else stack_layers
    whole = jax.tree.map(make, attach(shape(params), shape(adapters)))
    merged = unstack_layers(merge(whole, 0.3))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for found, base, beside in zip(
        merged["layers"], params["layers"], adapters["layers"], strict=True
    ):
        for module, parts in base.items():
            exact = np.asarray(parts.get("kernel", parts.get("scale")), np.float64)
            if module in beside:
                a, b = (np.asarray(beside[module][n], np.float64) for n in ("lora_a", "lora_b"))
                exact = exact + 0.3 * a @ b
                np.testing.assert_allclose(found[module]["kernel"], exact, rtol=0, atol=1e-7)
            else:
                np.testing.assert_array_equal(jax.tree.leaves(found[module])[0], exact)


def test_merge_keeps_a_change_that_bfloat16_would_lose():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base_params(LLAMA))
    adapters = jax.tree.map(lambda x: 0.01 * x, random_adapters(LLAMA, LoraOptions(3)))
    merged = merge(attach(params, adapters), 1.0)
    kernel = merged["layers"][0]["down"]["kernel"]
    assert kernel.dtype == jnp.float32
    parts = adapters["layers"][0]["down"]
    change = np.asarray(kernel) - np.asarray(params["layers"][0]["down"]["kernel"], np.float32)
    np.testing.assert_allclose(change, parts["lora_a"] @ parts["lora_b"], atol=1e-8)
    assert merged["embed"]["embedding"].dtype == jnp.bfloat16


@pytest.mark.parametrize("layout", ["list", "stacked"])
def test_gradients_reach_the_adapters_alone(layout):
    shape = (lambda tree: tree) if layout == "list" else stack_layers
    params = shape(base_params(LLAMA))
    lora = LoraOptions(3, None, ("self_attn.*",))
    adapters = shape(random_adapters(LLAMA, lora))
    decoder = Decoder(LLAMA, remat="full", lora_scale=lora_scale(lora))

    @jax.jit
    @jax.grad
    def gradient(adapters):
        return jnp.sum(jnp.sin(row_states(decoder, attach(params, adapters), IDS, MASK)))

    found = gradient(adapters)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(found))
    # at the start B is zero: it alone learns, and A from the next step on
    start = shape(init_adapters(LLAMA, lora, jax.random.key(2)))
    first = jax.tree_util.tree_leaves_with_path(gradient(start))
    for path, x in first:
        assert bool(jnp.any(x != 0)) == (path[-1].key == "lora_b")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_samplers_copy_is_merged(dtype):
    params, lora = stack_layers(base_params(LLAMA)), LoraOptions(3)
    adapters = stack_layers(random_adapters(LLAMA, lora))
    decoder = Decoder(LLAMA, dtype, "none", lora_scale=lora_scale(lora))
    copy = rollout_copy(decoder, attach(params, adapters))
    plain = rollout_copy(decoder, params)
    assert jax.tree.structure(copy) == jax.tree.structure(plain)
    assert jax.tree.map(lambda x: x.dtype, copy) == jax.tree.map(lambda x: x.dtype, plain)
    joined = dtype == "bfloat16"  # where kernels are copied anyway
    assert copy["layers"][1]["qkv" if joined else "q"]["kernel"].dtype == dtype
    whole = attach(params, adapters)
    found = hidden(LLAMA, copy, dtype=dtype).astype(np.float32)
    expected = hidden(LLAMA, whole)
    tolerance = 2e-5 if dtype == "float32" else 0.15
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert np.abs(hidden(LLAMA, params) - expected).max() > 0.5
