"""config.json and generation_config.json of every family, both ways, and their faults."""

import dataclasses
import json

import pytest

from family_configs import FAMILIES, FULL, IDS, LOCAL, RICH, first_case, hf_config, model_config
from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.errors import ConfigError
from ppo_jax.hf_config import classifier_labels, read_model_config
from ppo_jax.hf_export import write_model_config

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def write_keys(folder, keys, generation=None):
    (folder / "config.json").write_text(json.dumps(keys))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def keys_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture
def origin(tmp_path):
    (tmp_path / "origin").mkdir()
    return tmp_path / "origin"


@pytest.mark.parametrize("id_", IDS)
def test_what_is_written_is_read_back(tmp_path, id_):
    config = model_config(id_)
    write_model_config(tmp_path, config, "bfloat16")
    assert read_model_config(tmp_path) == config
    assert keys_of(tmp_path)["dtype"] == "bfloat16"
    assert classifier_labels(tmp_path) is None
    write_model_config(tmp_path, config, "float32", labels=3)
    assert read_model_config(tmp_path) == config and classifier_labels(tmp_path) == 3


def test_switches_are_read_as_meant():
    """By hand, of one case a family: a second statement beside the code's tables."""
    expected = {
        "llama": {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_dim": 12},
        "mistral": {"window": 5, "local_layers": None, "tie_embeddings": False},
        "qwen2": {"window": 5, "local_layers": (False, True), "qkv_bias": True, "out_bias": False},
        "qwen3": {"qk_norm": True, "head_dim": 16, "local_layers": (False, True)},
        "gpt2": {"position": "learned", "norm": "layer", "mlp_dim": 128, "num_kv_heads": 4}
        | {"fused_qkv": True, "gated_mlp": False, "activation": "gelu_tanh", "norm_eps": 1e-3},
        "gpt_neox": {"parallel_residual": True, "rotary_dim": 2, "qkv_bias": True}
        | {"activation": "gelu", "mlp_bias": True, "out_bias": True, "num_kv_heads": 4},
        "gemma2": {"attention_softcap": 2.0, "logit_softcap": 3.0, "norm_plus_one": True}
        | {"sandwich_norm": True, "scale_embedding": True, "local_layers": (True, False)}
        | {"attention_scale": 8**-0.5, "activation": "gelu_tanh"},
        "gemma3_text": {"local_rope_theta": 30.0, "rope_theta": 1e3, "qk_norm": True}
        | {"rope_scaling": RopeScaling("linear", 4.0), "local_layers": (True, True, False)}
        | {"attention_softcap": None, "logit_softcap": 2.0},
    }
    assert expected.keys() == set(FAMILIES)
    for family, fields in expected.items():
        config = model_config(RICH[family])
        found = {field: getattr(config, field) for field in fields}
        assert (config.family, found) == (family, fields)


def test_defaults_of_absent_keys(tmp_path):
    keys = hf_config("llama-gqa")
    for key in ("num_key_value_heads", "tie_word_embeddings"):
        del keys[key]
    m = read_model_config(write_keys(tmp_path, keys))
    assert (m.head_dim, m.num_kv_heads, m.tie_embeddings) == (8, 4, False)
    assert read_model_config(write_keys(tmp_path, keys | {"head_dim": None})) == m
    m = read_model_config(write_keys(tmp_path, {"model_type": "gpt2"}))
    assert m.mlp_dim == 4 * 768 and m.num_layers == 12 and m.eos_token_ids == (50256,)
    m = read_model_config(write_keys(tmp_path, {"model_type": "gemma3_text"}))
    assert m.local_layers[:7] == (True,) * 5 + (False, True) and m.window == 4096
    m = read_model_config(write_keys(tmp_path, {"model_type": "qwen2", "sliding_window": 8}))
    assert m.window is None  # use_sliding_window is false


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
def test_eos_ids_merge(tmp_path, config, generation, expected):
    keys = hf_config("llama-gqa") | {"eos_token_id": config}
    m = read_model_config(write_keys(tmp_path, keys, {"eos_token_id": generation}))
    assert m.eos_token_ids == expected
    assert m.pad_token_id == (expected or (0,))[0]


def test_special_ids_stand_in_either_file(tmp_path):
    keys = hf_config("qwen2-plain") | {"eos_token_id": 3}
    m = read_model_config(write_keys(tmp_path, keys, {"pad_token_id": 5, "bos_token_id": 6}))
    assert (m.pad_token_id, m.bos_token_id) == (5, 6)
    m = read_model_config(write_keys(tmp_path, keys | {"pad_token_id": 7, "bos_token_id": 0}))
    assert (m.pad_token_id, m.bos_token_id) == (7, 0)


@EVERY_FAMILY
def test_what_the_original_says_beside_the_network_goes_along(tmp_path, origin, family):
    dropout = "attn_pdrop" if family == "gpt2" else "attention_dropout"
    keys = hf_config(first_case(family)) | {dropout: 0.25, "use_cache": False, "my_note": "kept"}
    keys |= {"architectures": ["Other"], "torch_dtype": "float16", "id2label": {"0": "a"}}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1}
    write_keys(origin, keys, sampling | {"eos_token_id": [1], "transformers_version": "4.1"})
    config = read_model_config(origin)
    write_model_config(tmp_path, config, "float32", origin=origin)
    written = keys_of(tmp_path)
    assert (written[dropout], written["use_cache"], written["my_note"]) == (0.25, False, "kept")
    assert written["architectures"] != ["Other"] and written["dtype"] == "float32"
    assert not {"torch_dtype", "id2label"} & written.keys()
    generation = keys_of(tmp_path, "generation_config.json")
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
    assert generation == sampling | special
    assert read_model_config(tmp_path) == config


def test_the_original_of_another_family_is_not_mixed_in(tmp_path, origin):
    write_keys(origin, hf_config("gpt2-tied") | {"n_inner": 3})
    write_model_config(tmp_path, model_config("llama-gqa"), "float32", origin=origin)
    assert not {"n_inner", "attn_pdrop"} & keys_of(tmp_path).keys()


def test_an_activation_keeps_its_name(tmp_path, origin):
    write_keys(origin, hf_config("gpt_neox-sequential"))
    config = read_model_config(origin)
    write_model_config(tmp_path, config, "float32", origin=origin)
    assert keys_of(tmp_path)["hidden_act"] == "gelu_new"
    changed = dataclasses.replace(config, activation="relu")
    write_model_config(tmp_path, changed, "float32", origin=origin)
    assert keys_of(tmp_path)["hidden_act"] == "relu"


@pytest.mark.parametrize("head_dim", [8, 49, 80, 128])
@pytest.mark.parametrize("rotary", [1, 2, 20])
def test_every_share_of_rotary_dimensions_can_be_said(tmp_path, head_dim, rotary):
    config = dataclasses.replace(
        model_config("gpt_neox-parallel"),
        head_dim=head_dim,
        embed_dim=4 * head_dim,
        rotary_dim=min(rotary, head_dim - 1),
    )
    write_model_config(tmp_path, config, "float32")
    assert read_model_config(tmp_path) == config


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "window", 4),
        ("llama", "qk_norm", True),
        ("llama", "logit_softcap", 3.0),
        ("llama", "scale_embedding", True),
        ("llama", "attention_scale", 0.5),
        ("llama", "rotary_dim", 4),
        ("mistral", "qkv_bias", True),
        ("mistral", "local_layers", (True, False)),
        ("qwen2", "out_bias", True),
        ("qwen3", "qk_norm", False),
        ("gpt2", "position", "rope"),
        ("gpt2", "num_kv_heads", 2),
        ("gpt_neox", "gated_mlp", True),
        ("gpt_neox", "norm", "rms"),
        ("gemma2", "norm_plus_one", False),
        ("gemma2", "local_rope_theta", 5.0),
        ("gemma3_text", "sandwich_norm", False),
        ("gemma3_text", "attention_softcap", 5.0),
    ],
)
def test_a_switch_that_a_family_cannot_say(tmp_path, family, field, value):
    config = dataclasses.replace(model_config(RICH[family]), **{field: value})
    if field == "window":
        config = dataclasses.replace(config, local_layers=None)
    with pytest.raises(ConfigError) as error:
        write_model_config(tmp_path, config, "float32")
    for word in (f"{field}={value}", family, f"model.shape.{field}="):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_default_shape_is_a_llama(tmp_path):
    write_model_config(tmp_path, ModelConfig(), "float32")
    assert read_model_config(tmp_path) == ModelConfig()
    assert {LOCAL, FULL}.isdisjoint(keys_of(tmp_path).get("layer_types", ()))


@pytest.mark.parametrize("pad", [None, 7])
def test_a_model_without_a_pad_id_is_not_given_one(tmp_path, origin, pad):
    """It would freeze the embedding of an EOS id in later training; a classifier needs one."""
    write_keys(origin, hf_config("llama-gqa") | {"eos_token_id": 5, "pad_token_id": pad})
    config = read_model_config(origin)
    assert config.pad_token_id == (5 if pad is None else 7)
    for labels, expected in [(None, pad), (1, config.pad_token_id)]:
        write_model_config(tmp_path, config, "float32", origin=origin, labels=labels)
        for name in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / name).read_text())["pad_token_id"] == expected
        assert read_model_config(tmp_path) == config
