"""A byte model from scratch finds a hidden number by halving what is left, in three guesses or so.

    make train EXP=guess

A response is a dialogue with `ppo_jax.envs.guess`, held inside the compiled step: the model writes
a digit and reads `higher`, `lower` or `yes`; each guess costs 0.1, the right one earns 1. Halving
needs 25/9 = 2.78 guesses on average for a number from 1 to 9, and none can do with fewer.
`eval/` is of 216 games, each number 24 times: what is held out are the games, not the numbers, for
the model never sees what is hidden. Hardware: two CPU cores.

Expected: every number of the held-out games is found, in fewer than 3.1 guesses. Seen with seed 0:
`eval/env/success` 0.53, 0.77, 0.88, 1.00 and 1.00 after 40, 80, 120, 160 and 200 iterations,
`eval/env/guesses` 4.46, 3.67, 3.25, 2.90 and 2.89. 2 min 49 s of CPU time on one core, 9 min beside
other work.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    OptimOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.envs.guess import guess
from ppo_jax.rewards.environment import environment_reward

DATA = "experiments/data/guess"
TURNS = 6
OPENING, ANSWER = 4, 10  # tokens of `1-9\n` and of the longest answer, `no number\n`
SHAPE = ModelConfig(embed_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, init_std=0.08)

BASE = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl"),
    rollout=RolloutOptions(batch_size=128, max_new_tokens=OPENING + TURNS * (1 + ANSWER)),
    ppo=PPOOptions(epochs=2, minibatches=4),
    optim=OptimOptions(schedule="linear", final_ratio=0.1),
    run=RunOptions(iterations=200, eval_every=40, keep_best="eval/scores"),
    hparams=HParams(
        learning_rate=1.5e-3,
        kl_coef=0.0,
        vf_coef=0.5,
        value_clip=None,
        entropy_coef=0.02,
    ),
)

ENVIRONMENT = guess(1, 9, max_turns=TURNS)
REWARD = environment_reward()
