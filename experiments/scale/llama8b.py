"""Llama-3.1-8B's shape on a slice of sixteen chips, each with a share of every weight: FSDP.

    make tpu-check EXP=experiments/scale/llama8b.py ACCEL=v5p-32

Random weights, for what the shape needs; with the published ones,
`--model.path meta-llama/Llama-3.1-8B`. Hardware: v5p-32 (16 chips of 96 GB, 4 hosts). Expected: it
fits in 25 GB a chip, of which 16 GB are the sampler's weights, gathered once an iteration; no
decode step waits for another chip (compiled, not run).
"""

from ppo_jax.config import (
    Config,
    HParams,
    ModelConfig,
    ModelOptions,
    ParallelOptions,
    PPOOptions,
    RewardOptions,
    RolloutOptions,
    RopeScaling,
)
from ppo_jax.rewards.lexicon import sentiment

BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(
            vocab_size=128_256,
            embed_dim=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=14_336,
            max_positions=131_072,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(factor=8.0),
            tie_embeddings=False,
        ),
    ),
    rollout=RolloutOptions(batch_size=128, samples_per_prompt=4, max_new_tokens=256),
    reward=RewardOptions(kl_controller="adaptive"),
    # One row a chip at a time.
    ppo=PPOOptions(epochs=1, minibatches=4, microbatches=2, token_sizes=None),
    parallel=ParallelOptions(data=1, fsdp=-1),
    hparams=HParams(learning_rate=5e-7, kl_coef=0.05, kl_target=6.0),
)

REWARD = sentiment()
