"""How far a policy may follow a reward model before what it stands for gets worse.

    ppo-jax sweep overoptimisation
    ppo-jax report overoptimisation
    make reproduce ONLY=R6      (both, best of n, and the laws: _overoptimisation.py)

Question: without a KL penalty, does the true worth of a policy's responses turn over while the
reward model's score goes on rising, by which law, and later for a larger reward model? The policy
writes menus of twelve dishes after SFT on ones where all are alike. What one is worth is a rule,
`worth`, that nothing is trained on: of each different dish its own worth, of the same one again
nothing. Three reward models, 8, 32 and 128 wide, learn from 8,000 pairs of menus.

Published: Gao, Schulman and Hilton 2022 (arXiv 2210.10760). With d the square root of the KL, the
true score of RL follows d (alpha - beta log d), that of best of n d (alpha - beta d); the proxy's
rises all the way; a larger proxy turns later and higher; best of n gains the same at less KL.

Prediction, before any run: the law fits with an R2 above 0.9 for each width; the reward model's
score rises with d in every run, by rank correlation above 0.9; the turn is later, and the gain
there larger, the wider the reward model is. Best of 2 to 32 does not turn within its reach of 1.6.
It fails if a turn of a wider model is earlier, if an R2 is below 0.9, or if a gain does not turn.

Trials before it, seed 0 alone, R2 of the law and, where other, of d (alpha - beta d):
- Reviews in words, whose worth was a rule on their adjectives: policies went in jumps from one
  degenerate review to another ("the room was splendid, the room was splendig"), R2 0.5 to 0.97,
  turns in no order; with a penalty that fell from 1 to 0.001 the curves were smooth, 0.93, and 128
  turned later than 8 and then fell in one step, 0.46.
- Menus as here: 8 turns at 2.8, from 5.1 to 3.6, R2 0.90 (0.98); 32 at 3.4, R2 0.92 (0.98), after
  160 iterations; 128, whose reward model has 0.92 of the pairs right, 8 0.81, does not turn within
  100 iterations, which go to d 3.5. A 16 wide one does not either.
- Worth of few dishes, 4 to 0.2 by a factor of 0.7: 8 0.86, 128 does not turn; nor with 2,000 pairs.

Hardware: two CPU cores; nine runs of about 2 minutes, and SFT and reward models of 1 minute each,
by estimate. Not yet run.
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
from ppo_jax.rewards.learned import learned_reward

DATA = "experiments/data/menus"
SHAPE = ModelConfig(  # 0.1 million weights
    embed_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, init_std=0.08
)

DISHES = "abcdefghijklmnopqrst"
WORTH = {dish: ((7 * n) % 20 - 9.5) / 5 for n, dish in enumerate(DISHES)}  # -1.9 to 1.9
COURSES = 12


def worth(menu: str) -> float:
    """The true one: the sum of what its different dishes are worth, less a point for each character
    that is no dish. The same one again is worth nothing."""
    served = set(menu) & WORTH.keys()
    return round(sum(map(WORTH.__getitem__, served)) - sum(c not in WORTH for c in menu), 1)


def by_worth(prompts: list, responses: list[str]) -> list[float]:
    return [worth(text) for text in responses]


SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=12
    ),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=COURSES + 1),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=200, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=3e-3),
)

REWARD_MODEL = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/pairs.jsonl", eval_path=f"{DATA}/pairs_eval.jsonl", max_prompt_tokens=12
    ),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=COURSES + 1),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="reward-model",
        iterations=1000,
        eval_every=50,
        checkpoint_every=50,
        keep_best="-eval/loss",
    ),
    hparams=HParams(learning_rate=1e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", critic="separate", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=12
    ),
    rollout=RolloutOptions(batch_size=128, max_new_tokens=COURSES + 1),
    ppo=PPOOptions(epochs=2, minibatches=2, critic_warmup=4),
    run=RunOptions(iterations=100, eval_every=2),
    hparams=HParams(
        learning_rate=1e-4,
        critic_learning_rate=1e-3,
        lam=0.97,
        vf_coef=1.0,
        value_clip=None,
        kl_coef=0.0,
    ),
)

REWARD = learned_reward()
JUDGE = by_worth

GRID = {"reward-model.model.shape.embed_dim": (8, 32, 128)}
SEEDS = range(3)
METRICS = ("eval/scores", "eval/judge", "eval/kl")
