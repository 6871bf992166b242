"""Adapters in PEFT's format that are refused: every field and tensor at fault is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from family_configs import first_case, model_config
from peft_builders import (
    CONFIG,
    DOWN1,
    LLAMA,
    LORA,
    Q0,
    WEIGHTS,
    assert_refused,
    assert_same,
    edit_config,
    edit_tensors,
    random_adapters,
    write_llama,
)
from ppo_jax.config import LoraOptions, ModelConfig
from ppo_jax.errors import ConfigError
from ppo_jax.peft_folder import read_adapters, write_adapters


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "adapters")


# Every way in which an adapter is not plain LoRA, as PEFT 0.21 would say it.
REFUSED = {
    "peft_type": ["LOHA", "ADALORA", None],
    "task_type": ["SEQ_CLS", "FEATURE_EXTRACTION"],
    "bias": ["all", "lora_only"],
    "init_lora_weights": [
        "pissa",
        "pissa_niter_4",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "mica",
        1,
    ],
    "use_dora": [True],
    "use_rslora": [True],
    "use_qalora": [True],
    "lora_bias": [True],
    "rank_pattern": [{"q_proj": 8}],
    "alpha_pattern": [{"q_proj": 8}],
    "modules_to_save": [["lm_head"]],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "layers_to_transform": [0, [0, 1]],
    "layer_replication": [[[0, 2], [1, 2]]],
    "target_parameters": [["mlp.experts.gate_up_proj"]],
    "megatron_config": [{"a": 1}],
    "alora_invocation_tokens": [[1, 2], []],
    "velora_config": [{}, {"scale": 1.0}],
    "monteclora_config": [{}, {"num_samples": 8}],
    "use_bdlora": [{}, {"nblocks": 2}],
    "arrow_config": [{"top_k": 3}],
    "kasa_config": [{}, {"beta": 1e-4}],
    "a_field_of_tomorrow": [True, "x", 0, {}],
    "r": [0, -1, 2.0, True, "3", None],
    "lora_alpha": [None, "8", True, float("nan"), float("inf"), 10**400],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values]
)
def test_refused_fields(folder, key, value):
    edit_config(folder, **{key: value})
    assert_refused(folder, str(folder / CONFIG), f"{key} = {json.dumps(value)}"[:60])


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha"])
def test_missing_fields(folder, key):
    edit_config(folder, drop=[key])
    assert_refused(folder, str(folder / CONFIG), f"{key} is missing")


def test_fields_that_change_nothing(folder):
    expected = read_adapters(folder, LLAMA)
    edit_config(
        folder,
        auto_mapping={"base_model_class": "X"},
        peft_version="0.99",
        inference_mode=False,
        exclude_modules=["lm_head"],
        lora_dropout=0.1,
        fan_in_fan_out=True,
        megatron_core="megatron.core",
        loftq_config={},
        eva_config={"rho": 2.0},
        qalora_group_size=16,
        ensure_weight_tying=True,
        init_lora_weights="gaussian",
        rank_pattern={},
        alpha_pattern={},
        modules_to_save=None,
        layers_to_transform=[],
        task_type=None,
        use_dora=False,
        arrow_config=None,
    )
    found = read_adapters(folder, LLAMA)
    assert found[0] == expected[0]
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("targets", [["down_proj", "q_proj"], ".*", ["q_proj", "down_proj", "w1"]])
def test_the_tensors_say_what_is_adapted(folder, targets):
    edit_config(folder, target_modules=targets)
    lora, adapters = read_adapters(folder, LLAMA)
    assert lora.targets == ("self_attn.q_proj", "mlp.down_proj")
    assert_same(adapters, random_adapters(LLAMA, LORA))


def test_missing_tensors(folder):
    edit_tensors(folder, drop=[f"{DOWN1}.lora_B.weight"])
    assert_refused(folder, str(folder / WEIGHTS), f"{DOWN1}.lora_B.weight is missing", "[32, 3]")
    edit_tensors(folder, drop=[f"{DOWN1}.lora_A.weight"])  # now of layer 0 alone
    assert_refused(folder, f"{DOWN1}.lora_A.weight is missing (and 1 more)", "every layer")


@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], "all-linear"])
def test_a_matrix_that_the_config_promises(folder, targets):
    edit_config(folder, target_modules=targets)
    name = "k_proj" if targets == "all-linear" else "o_proj"
    assert_refused(folder, f"layers.0.self_attn.{name}.lora_A.weight is missing")
    edit_config(folder, exclude_modules=[".*"])  # PEFT's exceptions are not traced
    assert read_adapters(folder, LLAMA)[0].targets == ("self_attn.q_proj", "mlp.down_proj")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{Q0}.lora_magnitude_vector",
        f"{Q0}.lora_B.bias",
        f"{Q0}.lora_A.default.weight",
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_extra_tensors(folder, name):
    edit_tensors(folder, **{name: np.zeros((3, 32), np.float32)})
    assert_refused(folder, str(folder / WEIGHTS), f"unexpected tensor {name}", "nearest: ")


@pytest.mark.parametrize("shape", [(32, 3), (4, 32), (3, 31), (96,)])
def test_misshapen_tensors(folder, shape):
    edit_tensors(folder, **{f"{Q0}.lora_A.weight": np.zeros(shape, np.float32)})
    found = f"{Q0}.lora_A.weight has shape {list(shape)}"
    assert_refused(folder, str(folder / WEIGHTS), found, "expected [3, 32]")


def test_adapters_of_another_model(folder):
    assert_refused(folder, "[3, 32]", config=ModelConfig(embed_dim=64))
    assert_refused(folder, "unexpected tensor", config=model_config(first_case("gpt2")))


def test_other_broken_files(folder):
    edit_tensors(folder, **{f"{Q0}.lora_A.weight": np.zeros((3, 32), np.int8)})
    assert_refused(folder, f"{Q0}.lora_A.weight", "I8", "F32")
    save_file({}, folder / WEIGHTS)
    assert_refused(folder, str(folder / WEIGHTS), "no tensors")
    (folder / WEIGHTS).write_bytes(b"torn")
    assert_refused(folder, str(folder / WEIGHTS), "cannot be read as safetensors")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert_refused(folder, str(folder), f"expected {WEIGHTS}", "pickled", "are not read")
    (folder / CONFIG).write_text("{")
    assert_refused(folder, str(folder / CONFIG), "JSON")
    (folder / CONFIG).unlink()
    assert_refused(folder, str(folder), f"has no {CONFIG}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["layers"][0].pop("q"), "'q', 'lora_a'"),
        (lambda t: t["layers"].pop(), "('layers', 1, 'down', 'lora_a')"),
        (lambda t: t["layers"][0]["q"].update(lora_a=np.zeros((32, 4))), "layers.0.q.lora_a"),
        (lambda t: t.update(layers={}), "stacked"),
    ],
)
def test_a_tree_that_does_not_fit(tmp_path, change, words):
    adapters = random_adapters(LLAMA, LORA)
    change(adapters)
    with pytest.raises(ConfigError) as error:
        write_adapters(tmp_path / "a", LLAMA, LORA, adapters, base=None)
    assert words in str(error.value)
    assert not (tmp_path / "a").exists()


def test_options_that_cannot_be_written(tmp_path):
    adapters = random_adapters(LLAMA, LORA)
    with pytest.raises(ConfigError, match="float8.*float32, bfloat16, float16"):
        write_adapters(tmp_path / "a", LLAMA, LORA, adapters, base=None, dtype="float8")
    with pytest.raises(ConfigError, match="no adapters"):
        write_adapters(tmp_path / "a", LLAMA, LoraOptions(), adapters, base=None)
