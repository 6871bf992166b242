"""A byte model from scratch finds its way through mazes it has never seen, turn by turn.

    make train EXP=maze

A response is a dialogue with `ppo_jax.envs.maze`, held inside the compiled step: the model writes a
letter (u d l r) and reads what it sees from where it stands. Mazes are 5 x 5, new ones in every
iteration; `eval/` is of 512 others. `env/success` is the share that found the exit, `env/spl` that
success weighted by the shortest way over the steps taken. Hardware: two CPU cores.

Expected: of the held-out mazes at least 95 % are solved. Seen with seeds 0, 1 and 2, by `ppo-jax
eval maze`: 0.957, 0.961 and 0.986 of 512, in 4.99, 4.71 and 4.60 steps where 3.78 are the shortest
way, `env/spl` 0.896, 0.917 and 0.921 (experiments/results/pipeline). 5 min on one of two busy CPU
cores.
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
from ppo_jax.envs.maze import maze
from ppo_jax.rewards.environment import environment_reward

DATA = "experiments/data/maze"
TURNS = 20
SEEN = 7  # tokens of an observation: four cells, two signs, a new line
SHAPE = ModelConfig(embed_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, init_std=0.08)

BASE = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl"),
    rollout=RolloutOptions(batch_size=128, max_new_tokens=SEEN + TURNS * (1 + SEEN)),
    ppo=PPOOptions(epochs=2, minibatches=4),
    optim=OptimOptions(schedule="linear", final_ratio=0.1),
    run=RunOptions(iterations=200, eval_every=40, keep_best="eval/env/success"),
    hparams=HParams(
        learning_rate=1.5e-3,
        gamma=0.97,
        kl_coef=0.0,
        vf_coef=0.5,
        value_clip=None,
        entropy_coef=0.02,
    ),
)

ENVIRONMENT = maze(5, max_turns=TURNS, wall_cost=1.0)
REWARD = [(0.1, environment_reward())]
