"""Qwen2.5-1.5B's shape on a slice of eight chips, each with an eighth of every weight: FSDP.

    make tpu-check EXP=experiments/scale/qwen15b.py ACCEL=v6e-8

Whole on each chip, parameters, moments and gradients would fill it. Random weights, for what the
shape needs; with the published ones, `--model.path Qwen/Qwen2.5-1.5B`.
Hardware: v6e-8 (8 chips of 32 GB). Expected: it fits in 9.6 GB a chip; the sampler's 3.1 GB of
weights are gathered once an iteration, and no decode step waits for another chip (compiled, not
run).
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
)
from ppo_jax.rewards.lexicon import sentiment

BASE = Config(
    model=ModelOptions(
        path=None,
        shape=ModelConfig(
            family="qwen2",
            vocab_size=151_936,
            embed_dim=1536,
            num_layers=28,
            num_heads=12,
            num_kv_heads=2,
            head_dim=128,
            mlp_dim=8960,
            max_positions=131_072,
            rope_theta=1e6,
            qkv_bias=True,
            norm_eps=1e-6,
        ),
    ),
    rollout=RolloutOptions(batch_size=256, samples_per_prompt=4, max_new_tokens=256),
    reward=RewardOptions(kl_controller="adaptive"),
    ppo=PPOOptions(epochs=2, minibatches=4, microbatches=2, token_sizes=2),
    parallel=ParallelOptions(data=1, fsdp=-1),
    hparams=HParams(learning_rate=1e-6, kl_coef=0.05, kl_target=6.0),
)

REWARD = sentiment()
