"""Tiny models of every family, as Hugging Face's config.json says them: a case for each switch."""

import functools
import json
import tempfile
from pathlib import Path

from ppo_jax.config import ModelConfig
from ppo_jax.hf_config import read_model_config

VOCAB, WINDOW = 101, 5
LOCAL, FULL = "sliding_attention", "full_attention"

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    # torch gives the input embedding of a padding id no gradient, even where it is a real token.
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA = _SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    **{key: None for key in ("pad_token_id", "bos_token_id", "eos_token_id")},
}
_GEMMA = _LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
BASES = {
    "llama": _LLAMA | {"tie_word_embeddings": True},
    "mistral": _LLAMA | {"sliding_window": None},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gpt2": _GPT2,
    "gpt_neox": _SIZES,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"num_hidden_layers": 3, "layer_types": [LOCAL, LOCAL, FULL]},
}


def rope(theta: float, kind: str = "default", **rest) -> dict:
    return {"rope_type": kind, "rope_theta": theta, **rest}


def llama3(theta: float, factor: float, low: float, high: float, original: int) -> dict:
    rest = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return rope(theta, "llama3", **rest, original_max_position_embeddings=original)


_SOME_LOCAL = {"use_sliding_window": True, "sliding_window": WINDOW, "num_hidden_layers": 3}
# Every case sees positions well beyond its window and beyond a llama3 rule's original context.
CASES = {
    "llama": {
        "gqa": {},
        "mha-untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
        "mqa-eps": {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "llama3": {"rope_parameters": llama3(1e3, 8.0, 1.0, 4.0, 12)},
        "linear": {"rope_parameters": rope(5e5, "linear", factor=3.0)},
        "head-dim": {"head_dim": 12, "num_hidden_layers": 1, "tie_word_embeddings": False},
        "gelu": {"hidden_act": "gelu"},
        "rich": {"rope_parameters": llama3(1e3, 8.0, 1.0, 4.0, 6), "attention_bias": True}
        | {"head_dim": 12, "mlp_bias": True, "tie_word_embeddings": False},
    },
    "mistral": {
        "plain": {},
        "window": {"sliding_window": WINDOW},
        "window-tied": {"sliding_window": 2, "tie_word_embeddings": True, "head_dim": 16},
    },
    "qwen2": {
        "plain": {"rope_parameters": rope(1e6)},
        "tied": {"tie_word_embeddings": True},
        "window": _SOME_LOCAL | {"max_window_layers": 1, "num_hidden_layers": 2},
        "layer-types": _SOME_LOCAL | {"layer_types": [FULL, LOCAL, FULL]},
    },
    "qwen3": {
        "plain": {},
        "head-dim-tied": {"head_dim": 12, "tie_word_embeddings": True},
        "biases": {"attention_bias": True, "head_dim": 16},
        "window": _SOME_LOCAL | {"max_window_layers": 2},
        "rich": _SOME_LOCAL
        | {"max_window_layers": 1, "num_hidden_layers": 2, "attention_bias": True, "head_dim": 16},
    },
    "gpt2": {
        "tied": {},
        "untied": {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
        "inner-relu": {"n_inner": 40, "activation_function": "relu"},
        "gelu": {"activation_function": "gelu", "n_layer": 3},
    },
    "gpt_neox": {
        "parallel": {},
        "sequential": {"use_parallel_residual": False, "hidden_act": "gelu_new"},
        "rotary-half": {"rope_parameters": rope(1e3) | {"partial_rotary_factor": 0.5}},
        "rotary-whole-tied": {"rope_parameters": rope(1e4) | {"partial_rotary_factor": 1.0}}
        | {"tie_word_embeddings": True},
        "no-bias": {"attention_bias": False, "layer_norm_eps": 1e-3},
        "linear": {
            "rope_parameters": rope(1e4, "linear", factor=2.0) | {"partial_rotary_factor": 0.25}
        },
    },
    "gemma2": {
        "softcaps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "no-softcap": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "scale": {"query_pre_attn_scalar": 3, "num_key_value_heads": 1, "attention_bias": True},
        "layer-types-untied": {"layer_types": [FULL, LOCAL], "tie_word_embeddings": False},
        "all-local": {"layer_types": [LOCAL, LOCAL], "head_dim": 12},
    },
    "gemma3_text": {
        "two-thetas": {},
        "linear-softcap": {
            "rope_parameters": {FULL: rope(1e3, "linear", factor=4.0), LOCAL: rope(30.0)},
            "final_logit_softcapping": 2.0,
        },
        "head-dim": {"head_dim": 12, "query_pre_attn_scalar": 20, "attention_bias": True},
        "untied": {"layer_types": [FULL, LOCAL, FULL], "tie_word_embeddings": False},
    },
}
IDS = [f"{family}-{case}" for family, cases in CASES.items() for case in cases]
FAMILIES = list(CASES)
RICH = {  # of each family the case with the most of its switches
    "llama": "llama-rich",
    "mistral": "mistral-window",
    "qwen2": "qwen2-window",
    "qwen3": "qwen3-rich",
    "gpt2": "gpt2-untied",
    "gpt_neox": "gpt_neox-parallel",
    "gemma2": "gemma2-softcaps",
    "gemma3_text": "gemma3_text-linear-softcap",
}


def hf_config(id_: str) -> dict:
    """config.json's keys of the case `family-case`."""
    family, case = id_.split("-", 1)
    return {"model_type": family} | BASES[family] | CASES[family][case]


@functools.cache
def model_config(id_: str) -> ModelConfig:
    """The same as it is read."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hf_config(id_)))
        return read_model_config(folder)


def first_case(family: str) -> str:
    return f"{family}-{next(iter(CASES[family]))}"
