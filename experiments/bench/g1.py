"""G1: Qwen2.5-0.5B's shape with random weights on a GPU, lengths geometric with mean 100.

    ppo-jax bench g1                (--model.critic separate: TRL's arithmetic)

bfloat16; 256 prompts of 128 tokens, at most 256 new ones. One id in a hundred stops: random weights
draw them nearly alike, so lengths are geometric with mean 100 (92 with the cut at 256). Bars:
padding at most 12 % of the update's matmul FLOPs, decode slots at least 85 % in use, at least 4
times TRL's speed on the same GPU at identical arithmetic and 8 times with the shared trunk.
Expected: not measured yet.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
)
from ppo_jax.workload import Workload, constant

VOCABULARY = 151_936

BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(
            family="qwen2",
            vocab_size=VOCABULARY,
            embed_dim=896,
            num_layers=24,
            num_heads=14,
            num_kv_heads=2,
            head_dim=64,
            mlp_dim=4864,
            max_positions=32_768,
            rope_theta=1e6,
            qkv_bias=True,
            norm_eps=1e-6,
            eos_token_ids=(),
            pad_token_id=0,
        ),
        compute_dtype="bfloat16",
    ),
    data=DataOptions(max_prompt_tokens=128),
    rollout=RolloutOptions(
        batch_size=256,
        max_new_tokens=256,
        slots=96,
        compactions=3,
        cache_widths=1,
        stop_token_ids=tuple(range(VOCABULARY - VOCABULARY // 100, VOCABULARY)),
    ),
    ppo=PPOOptions(epochs=4, minibatches=4),
    hparams=HParams(learning_rate=1e-6, kl_coef=0.05, max_grad_norm=None),
)

REWARD = constant
WORKLOAD = Workload(prompt_tokens=(128, 128), platforms=("gpu", "tpu"))
