"""Hugging Face folders: what is written is read back, and every fault is named."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from family_configs import FAMILIES, IDS, RICH
from family_models import family_model
from ppo_jax.errors import ConfigError
from ppo_jax.tokenizer import byte_tokenizer, load_tokenizer
from ppo_jax.weights import load_classifier, load_hf, save_hf
from trees import TIED, UNTIED, assert_same, random_params


@pytest.mark.parametrize("m", [TIED, UNTIED], ids=["tied", "untied-llama3"])
@pytest.mark.parametrize("shard_bytes", [5e9, 9000], ids=["single", "sharded"])
def test_round_trip(tmp_path, m, shard_bytes):
    params = random_params(m)
    save_hf(tmp_path / "m", m, params, byte_tokenizer(), max_shard_bytes=shard_bytes)
    loaded, found = load_hf(tmp_path / "m")
    assert loaded == m
    assert_same(found, params)
    shards = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert (shards == ["model.safetensors"]) == (shard_bytes == 5e9)
    for shard in shards:
        tensors = load_file(tmp_path / "m" / shard)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= shard_bytes
    assert ("lm_head.weight" in str(tensors.keys())) == (not m.tie_embeddings)
    assert load_tokenizer(tmp_path / "m").encode("aé") == [97, 195, 169]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing temporary stays behind


def test_file_layout_is_hugging_faces(tmp_path):
    params = random_params(UNTIED)
    save_hf(tmp_path / "m", UNTIED, params, None)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    layer = params["layers"][1]
    expected = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "lm_head.weight": params["lm_head"]["kernel"].T,
        "model.layers.1.self_attn.k_proj.weight": layer["k"]["kernel"].T,
        "model.layers.1.self_attn.o_proj.weight": layer["o"]["kernel"].T,
        "model.layers.1.mlp.down_proj.weight": layer["down"]["kernel"].T,
        "model.layers.1.input_layernorm.weight": layer["attn_norm"]["scale"],
        "model.layers.1.post_attention_layernorm.weight": layer["mlp_norm"]["scale"],
    }
    assert len(tensors) == 3 + 9 * UNTIED.num_layers
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 4.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    }
    assert raw["eos_token_id"] == [257, 260]


def test_jax_arrays_and_lower_precision(tmp_path):
    params = random_params(TIED)
    jax_params = {**params, "layers": [dict(layer) for layer in params["layers"]]}
    jax_params["layers"][0]["q"] = {"kernel": jnp.asarray(params["layers"][0]["q"]["kernel"])}
    save_hf(tmp_path / "m", TIED, jax_params, None, dtype="bfloat16")
    rounded = params["layers"][0]["q"]["kernel"].astype(ml_dtypes.bfloat16)
    _, found = load_hf(tmp_path / "m")
    assert found["layers"][0]["q"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["layers"][0]["q"]["kernel"], rounded.astype(np.float32))
    _, found = load_hf(tmp_path / "m", dtype="bfloat16")
    assert found["layers"][0]["q"]["kernel"].dtype == ml_dtypes.bfloat16


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("id_", IDS)
def test_round_trip_of_every_family(tmp_path, id_):
    m, params = family_model(id_)
    save_hf(tmp_path / "m", m, params, None)
    loaded, found = load_hf(tmp_path / "m")
    assert loaded == m
    assert_same(found, as_numpy(params))


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_of_a_classifier(tmp_path, family):
    m, params = family_model(RICH[family])
    head = {"kernel": np.linspace(-1, 1, 2 * m.embed_dim, dtype=np.float32).reshape(-1, 2)}
    save_hf(tmp_path / "m", m, params, None, head=head)
    loaded, trunk, found = load_classifier(tmp_path / "m")
    assert loaded == m
    expected = as_numpy(params)
    expected.pop("lm_head", None)
    assert_same(trunk, expected)
    assert_same(found, head)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    np.testing.assert_array_equal(tensors["score.weight"], head["kernel"].T)
    assert not {"lm_head.weight", "embed_out.weight"} & tensors.keys()
    with pytest.raises(ConfigError, match=r"config\.json.*sequence classifier"):
        load_hf(tmp_path / "m")
    save_hf(tmp_path / "lm", m, params, None)
    with pytest.raises(ConfigError, match=r"config\.json.*ForSequenceClassification"):
        load_classifier(tmp_path / "lm")


def test_gpt2_matrices_lie_as_they_are_and_gpt_neox_interleaves_its_heads(tmp_path):
    m, params = family_model("gpt2-tied")
    save_hf(tmp_path / "gpt2", m, params, None)
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    qkv = params["layers"][1]["qkv"]
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.weight"], qkv["kernel"])
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.bias"], qkv["bias"])
    positions = params["positions"]["embedding"]
    np.testing.assert_array_equal(tensors["transformer.wpe.weight"], positions)
    m, params = family_model("gpt_neox-parallel")
    save_hf(tmp_path / "neox", m, params, None)
    tensors = load_file(tmp_path / "neox" / "model.safetensors")
    name = "gpt_neox.layers.0.attention.query_key_value"
    ours, K = params["layers"][0]["qkv"], m.head_dim
    for head in range(m.num_heads):
        for part in range(3):  # q, k, v of a head stand together there, the heads of q here
            there = (3 * head + part) * K
            here = (part * m.num_heads + head) * K
            rows = tensors[f"{name}.weight"][there : there + K]
            np.testing.assert_array_equal(rows, ours["kernel"][:, here : here + K].T)
            bias = tensors[f"{name}.bias"][there : there + K]
            np.testing.assert_array_equal(bias, ours["bias"][here : here + K])


TOKENIZER = {
    "tokenizer.json": b'{"a":  1}\n',
    "tokenizer_config.json": b'{"chat_template": "{{ x }}"}',
    "special_tokens_map.json": b"{}",
    "vocab.json": b"{ }",
    "merges.txt": b"#version\n",
    "chat_template.jinja": b"{{ messages }}\n\n",
    "added_tokens.json": b"{}\n",
}


@pytest.mark.parametrize("as_classifier", [False, True])
def test_the_originals_tokenizer_goes_along_to_the_byte(tmp_path, as_classifier):
    m, params = family_model("qwen2-plain")
    origin = tmp_path / "origin"
    save_hf(origin, m, params, None)
    for name, content in TOKENIZER.items():
        (origin / name).write_bytes(content)
    (origin / "README.md").write_text("of the original")
    head = {"kernel": np.ones((m.embed_dim, 1), np.float32)} if as_classifier else None
    save_hf(tmp_path / "m", m, params, byte_tokenizer(), head=head, origin=origin)
    for name, content in TOKENIZER.items():
        assert (tmp_path / "m" / name).read_bytes() == content
    assert not (tmp_path / "m" / "README.md").exists()
    save_hf(tmp_path / "again", m, params, None, origin=tmp_path / "m")  # and once more
    for name, content in TOKENIZER.items():
        assert (tmp_path / "again" / name).read_bytes() == content


def test_an_original_without_a_tokenizer_gets_the_one_given(tmp_path):
    m, params = family_model("llama-gqa")
    save_hf(tmp_path / "origin", m, params, None)
    save_hf(tmp_path / "m", m, params, byte_tokenizer(), origin=tmp_path / "origin")
    assert load_tokenizer(tmp_path / "m").encode("a") == [97]


def test_a_model_can_be_written_over_its_original(tmp_path):
    m, params = family_model("gpt2-tied")
    save_hf(tmp_path / "m", m, params, None)
    for name, content in TOKENIZER.items():
        (tmp_path / "m" / name).write_bytes(content)
    save_hf(tmp_path / "m", m, params, None, origin=tmp_path / "m")
    for name, content in TOKENIZER.items():
        assert (tmp_path / "m" / name).read_bytes() == content
