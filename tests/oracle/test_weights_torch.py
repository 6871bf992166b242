"""Weights against torch transformers: it reads what is written, and the other way round."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ppo_jax.config import ModelConfig, RopeScaling
from ppo_jax.tokenizer import byte_tokenizer
from ppo_jax.weights import load_hf, save_hf

TIED = ModelConfig(embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
UNTIED = dataclasses.replace(
    TIED,
    head_dim=16,  # not embed_dim / num_heads
    tie_embeddings=False,
    rope_theta=5e5,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64),
    eos_token_ids=(257, 3),
)
SHAPES = pytest.mark.parametrize("m", [TIED, UNTIED], ids=["tied", "untied-llama3"])


def torch_model(m: ModelConfig, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": m.rope_theta}
    if m.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": m.rope_scaling.factor,
            "low_freq_factor": m.rope_scaling.low_freq_factor,
            "high_freq_factor": m.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": m.rope_scaling.original_max_positions,
        }
    config = LlamaConfig(
        vocab_size=m.vocab_size,
        hidden_size=m.embed_dim,
        intermediate_size=m.mlp_dim,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_heads,
        num_key_value_heads=m.num_kv_heads,
        head_dim=m.head_dim,
        max_position_embeddings=m.max_positions,
        rms_norm_eps=m.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=m.tie_embeddings,
        bos_token_id=m.bos_token_id,
        eos_token_id=list(m.eos_token_ids),
        pad_token_id=m.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, which start at one
            parameter.normal_(0.0, 0.2)
    return model


@SHAPES
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_reads_what_transformers_saves_and_gives_it_back(tmp_path, m, shard):
    model = torch_model(m, seed=1)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    loaded, params = load_hf(tmp_path / "theirs")
    assert loaded == m
    state = model.state_dict()
    key = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(params["layers"][1]["k"]["kernel"], state[key].numpy().T)
    np.testing.assert_array_equal(
        params["embed"]["embedding"], state["model.embed_tokens.weight"].numpy()
    )
    bytes_ = 5e9 if shard == "5GB" else 20e3
    save_hf(tmp_path / "ours", loaded, params, byte_tokenizer(), max_shard_bytes=bytes_)
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, local_files_only=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.dtype == torch.float32
    assert again.state_dict().keys() == state.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name
    ids = torch.arange(120).reshape(2, 60) % m.vocab_size
    with torch.no_grad():  # rope, norm epsilon and tying are read as they were meant
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    eos = again.generation_config.eos_token_id
    assert (eos if isinstance(eos, list) else [eos]) == list(m.eos_token_ids)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert tokenizer.encode("aé") == [97, 195, 169]


def test_bfloat16_export(tmp_path):
    model = torch_model(TIED, seed=2)
    model.save_pretrained(tmp_path / "theirs")
    save_hf(tmp_path / "ours", *load_hf(tmp_path / "theirs"), None, dtype="bfloat16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert again.dtype == torch.bfloat16
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(torch.bfloat16)), name
