"""A random model that writes byte by byte learns to end a text with a full stop.

    make train EXP=textgen_period

Hardware: any; about a minute on two CPU cores, most of it compilation. Expected: the share of texts
of 8 to 32 bytes that end with "." rises from about 0.1 to above 0.98; seen with seed 0, mean of the
first and of the last five iterations: 0.14 and 1.00.

As a Gymnasium environment it is `ppo_jax.text_env` with the same reward; a text may be shorter than
8 bytes there, too. The trained model plays it as `text_policy("runs/textgen_period/base/seed0")`,
from a prompt, as it was trained: experiments/README.md, "Environments", has the loop.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.rewards.ending import ends_with

BASE = Config(
    model=ModelOptions(path=None),
    data=DataOptions(
        path="experiments/data/tiny.jsonl",
        eval_path="experiments/data/tiny_eval.jsonl",  # of `ppo-jax eval`
        max_prompt_tokens=12,
    ),
    # Byte 46 is the full stop: it ends a text, as in the environment.
    rollout=RolloutOptions(
        batch_size=64, max_new_tokens=32, min_new_tokens=7, stop_token_ids=(46,)
    ),
    ppo=PPOOptions(epochs=2, minibatches=2, token_sizes=2),
    run=RunOptions(iterations=40, checkpoint_every=20),
    hparams=HParams(learning_rate=3e-3, kl_coef=0.01),
)

REWARD = ends_with(".")
