"""What Hugging Face's config.json calls things, family by family: read and written by these."""

import typing
from typing import Any

from ppo_jax.config import Family

FAMILIES = typing.get_args(Family)

_SIZES = {  # our field -> their key
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
_LLAMA_SIZES = _SIZES | {"num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "mlp_dim": "n_inner",
    "max_positions": "n_positions",
}
_EPS = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}
_ACTIVATION = {
    "gpt2": "activation_function",
    "gemma2": "hidden_activation",
    "gemma3_text": "hidden_activation",
}
ACTIVATIONS = {  # theirs -> ours; the first of each of ours is what is written
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_GPT = {"norm": "layer", "gated_mlp": False, "fused_qkv": True, "mlp_bias": True}
_GEMMA = {"norm_plus_one": True, "sandwich_norm": True, "scale_embedding": True}
SWITCHES: dict[str, dict[str, Any]] = {  # what belongs to a family whatever its config says
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gpt2": _GPT | {"position": "learned", "qkv_bias": True, "out_bias": True},
    "gpt_neox": _GPT,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"qk_norm": True},
}
LLAMA3 = {  # theirs -> RopeScaling's
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_positions",
}
LOCAL, FULL = "sliding_attention", "full_attention"  # kinds of layers
ARCHITECTURES = {  # of a language model, of a sequence classifier
    "llama": ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    "mistral": ("MistralForCausalLM", "MistralForSequenceClassification"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
    "gpt2": ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
}


def size_keys(family: str) -> dict[str, str]:
    """Our field -> their key, of the sizes."""
    return {"gpt2": _GPT2_SIZES, "gpt_neox": _SIZES}.get(family, _LLAMA_SIZES)


def eps_key(family: str) -> str:
    return _EPS.get(family, "rms_norm_eps")


def activation_key(family: str) -> str:
    return _ACTIVATION.get(family, "hidden_act")


def has_attention_bias(family: str) -> bool:
    """Whether the key `attention_bias` says that q, k, v and the output have biases."""
    return family not in ("mistral", "qwen2", "gpt2")


def has_window(family: str) -> bool:
    """Whether the family's code reads `sliding_window`."""
    return family not in ("llama", "gpt2", "gpt_neox")


def names_layers(family: str) -> bool:
    """Whether `layer_types` says which layers have the window; else all have it."""
    return has_window(family) and family != "mistral"
