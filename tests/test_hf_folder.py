"""config.json and generation_config.json of both transformers generations, and their faults."""

import json

import pytest

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError
from ppo_jax.hf_folder import read_model_config, write_model_config

MODEL = ModelConfig(embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40)


@pytest.fixture
def folder(tmp_path):
    write_model_config(tmp_path, MODEL, "float32")
    return tmp_path


def edit_config(folder, drop=(), **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    for key in drop:
        del raw[key]
    (folder / "config.json").write_text(json.dumps(raw))


def test_transformers_4_keys(folder):
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    edit_config(folder, drop=["rope_parameters"], rope_theta=1e6, rope_scaling=None)
    m = read_model_config(folder)
    assert (m.rope_theta, m.rope_scaling) == (1e6, None)
    edit_config(folder, rope_scaling=rope)
    m = read_model_config(folder)
    assert (m.rope_theta, m.rope_scaling) == (1e6, RopeScaling(8.0, 1.0, 4.0, 256))
    edit_config(folder, drop=["rope_theta", "rope_scaling"])
    assert read_model_config(folder).rope_theta == 10000.0


def test_defaults_of_absent_keys(folder):
    edit_config(folder, drop=["head_dim", "num_key_value_heads", "tie_word_embeddings"])
    m = read_model_config(folder)
    assert (m.head_dim, m.num_kv_heads, m.tie_embeddings) == (6, 4, False)
    edit_config(folder, head_dim=None, num_key_value_heads=None)
    assert read_model_config(folder) == m


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, None, (2,)),
        (2, 7, (7, 2)),
        ([2, 7], [7, 9], (7, 9, 2)),
        (None, None, ()),
        (None, [0], (0,)),
    ],
)
def test_eos_ids_merge(folder, config, generation, expected):
    edit_config(folder, eos_token_id=config, pad_token_id=None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    m = read_model_config(folder)
    assert m.eos_token_ids == expected
    assert m.pad_token_id == (expected or (0,))[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, ["model_type", '"qwen2"', '"llama"']),
        ({"attention_bias": True}, ["attention_bias", "true", "false"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", '"gelu"', '"silu"']),
        ({"pretraining_tp": 2}, ["pretraining_tp", "2"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "bits"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["yarn", "llama3"]),
        ({"rope_parameters": {"rope_type": "llama3"}}, ["llama3", "low_freq_factor"]),
        ({"vocab_size": None}, ["vocab_size", "null"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3"]),
        ({"eos_token_id": "end"}, ["eos_token_id", '"end"']),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps", '"small"']),
    ],
)
def test_unsupported_config(folder, changes, words):
    edit_config(folder, **changes)
    with pytest.raises(ConfigError) as error:
        read_model_config(folder)
    assert "\n" not in str(error.value)
    for word in [str(folder / "config.json"), *words]:
        assert word in str(error.value)
