"""A random byte-level model learns to write vowels: the whole path, in seconds.

    make smoke

Hardware: any; under a minute on two CPU cores, most of it compilation. Expected: the share of
vowels in the responses rises from 0.02 (5 of 259 ids) to about 0.7. Seen with seed 0: from 0.024
to 0.749, at 19 nats.
"""

import jax.numpy as jnp

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)

BASE = Config(
    model=ModelOptions(path=None),
    data=DataOptions(path="experiments/data/tiny.jsonl", max_prompt_tokens=12),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=16),
    ppo=PPOOptions(epochs=2, minibatches=2, token_sizes=2),
    run=RunOptions(iterations=60, checkpoint_every=20),
    hparams=HParams(learning_rate=3e-3, kl_coef=0.01),
)


def vowels(rollout, columns):
    """Share of lower-case vowels among the response's bytes."""
    hits = jnp.isin(rollout.response_ids_BT, jnp.asarray(list(b"aeiou")))
    return jnp.sum(hits * rollout.mask_BT, axis=1) / rollout.lengths_B


REWARD = vowels
