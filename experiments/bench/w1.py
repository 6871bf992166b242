"""W1: a small random Llama on the CPU, every response 64 tokens, a critic of its own.

    ppo-jax bench w1                (or: make bench WORKLOAD=w1)

4 layers, d 256, 4 heads, MLP 1024, vocabulary 1024; 64 prompts of 32 tokens, responses of exactly
64 (no stop id), 4 epochs of 4 minibatches, separate critic of the same size, KL to a reference,
float32. Bars, in own CPU seconds of a whole iteration at identical arithmetic: at least 0.95 times
the speed of TRL's PPOTrainer and 1.7 times that of Tunix; the update at 65 % or more of XLA's own
matmul ceiling. Expected: about 10 s an iteration on two cores.
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

BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(
            vocab_size=1024,
            embed_dim=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=64,
            mlp_dim=1024,
            max_positions=256,
            tie_embeddings=False,
            eos_token_ids=(),
            pad_token_id=0,
        ),
        compute_dtype="float32",
        critic="separate",
        scan_layers="unroll",
        remat="none",
    ),
    data=DataOptions(max_prompt_tokens=32),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=64),
    ppo=PPOOptions(epochs=4, minibatches=4, token_sizes=None),
    # As TRL's trainer: gradients are not clipped.
    hparams=HParams(learning_rate=1e-5, kl_coef=0.05, max_grad_norm=None),
)

REWARD = constant
WORKLOAD = Workload(prompt_tokens=(32, 32))
