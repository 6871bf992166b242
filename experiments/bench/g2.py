"""G2: Llama-3.2-1B's shape with random weights on a GPU, every response 512 tokens.

    ppo-jax bench g2

bfloat16; 256 prompts of 256 tokens, responses of exactly 512 (no stop id). Bars: decode at 60 % or
more of the floor that the measured bandwidth sets, the update at 50 % or more of the measured
bfloat16 matmul ceiling. Expected: not measured yet.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
    RopeScaling,
)
from ppo_jax.workload import Workload, constant

BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(
            vocab_size=128_256,
            embed_dim=2048,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            head_dim=64,
            mlp_dim=8192,
            max_positions=131_072,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(factor=32.0),
            eos_token_ids=(),
            pad_token_id=0,
        ),
        compute_dtype="bfloat16",
    ),
    data=DataOptions(max_prompt_tokens=256),
    rollout=RolloutOptions(batch_size=256, max_new_tokens=512, cache_widths=3),
    # By padded rows: there is no padding, and rows have cuDNN's attention.
    ppo=PPOOptions(epochs=4, minibatches=4, token_sizes=None),
    hparams=HParams(learning_rate=1e-6, kl_coef=0.05, max_grad_norm=None),
)

REWARD = constant
WORKLOAD = Workload(prompt_tokens=(256, 256), platforms=("gpu", "tpu"))
