"""One small random model of each family, with the switches that are the family's own."""

from ppo_jax.config import ModelConfig
from ppo_jax.hf_keys import SWITCHES
from step_builders import EOS, PAD, VOCAB

OWN = {
    "llama": {},
    "mistral": {"window": 4},
    "qwen2": {"window": 5, "local_layers": (False, True)},
    "qwen3": {"head_dim": 12},
    "gpt2": {"num_kv_heads": 2, "activation": "gelu_tanh"},
    "gpt_neox": {"num_kv_heads": 2, "parallel_residual": True, "rotary_dim": 4}
    | {"qkv_bias": True, "out_bias": True, "activation": "gelu", "tie_embeddings": False},
    "gemma2": {"window": 4, "local_layers": (True, False), "attention_scale": 24**-0.5}
    | {"attention_softcap": 50.0, "logit_softcap": 30.0, "activation": "gelu_tanh"},
    "gemma3_text": {"window": 4, "local_layers": (True, False), "attention_scale": 0.25}
    | {"local_rope_theta": 1e3, "activation": "gelu_tanh"},
}


def family_shape(family: str) -> ModelConfig:
    return ModelConfig(
        **{
            "family": family,
            "vocab_size": VOCAB,
            "embed_dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "mlp_dim": 48,
            "max_positions": 64,
            "init_std": 0.2,  # far from uniform
            "eos_token_ids": (EOS,),
            "pad_token_id": PAD,
            **SWITCHES.get(family, {}),
            **OWN[family],
        }
    )
