"""How far a policy may follow a reward model before what it stands for gets worse.

    ppo-jax sweep overoptimisation
    ppo-jax report overoptimisation
    make reproduce ONLY=R6      (both, best of n, and the laws: _overoptimisation.py)

Question: without a KL penalty, does the true worth of a policy's responses turn over while the
reward model's score goes on rising, by which law, and later for a larger reward model? The policy
writes reviews of places after SFT on ones of every worth. What one is worth is a rule, `worth`,
that nothing is trained on: three reward models, 8, 32 and 128 wide, learn from 8,000 pairs of
reviews, a fifth of which say an adjective again and a fifth have a word that is none.

Published: Gao, Schulman and Hilton 2022 (arXiv 2210.10760). With d the square root of the KL, the
true score of RL follows d (alpha - beta log d), that of best of n d (alpha - beta d); the proxy's
rises all the way; a larger proxy turns later and higher; best of n gains the same at less KL.

Prediction, before any run: the law fits with an R2 above 0.9 for each width; the reward model's
score rises with d in every run, by rank correlation above 0.9; the turn is later, and the gain
there larger, the wider the reward model is. Best of 2 to 32 does not turn within its reach of 1.6.
It fails if a turn of a wider model is earlier, if an R2 is below 0.9, or if a run ends above half
of the gain that it had.

Trials before it, seed 0 alone. With pairs that showed no faults, widths of 16, 32 and 64 and 100
iterations worth turned at d 1.9, 2.2 and 1.5, and the law had an R2 of 0.96, 0.00 and 0.91: from 40
nats on policies moved from one degenerate review to another. At 3e-5 in place of 1e-4 they came to
7 nats, too few for the law. With these pairs and reward models of 500 steps 60 iterations come to
16 to 32 nats; R2 0.93, 0.97 and 0.82, turns at d 1.80, 1.75 and 1.76, largest gains 1.34, 1.33 and
1.57: no order, of reward models of accuracy 0.84, 0.89 and 0.89.

Hardware: two CPU cores; nine runs of about 5 minutes, and SFT and reward models of 1 to 2 minutes
each, by estimate. Not yet run.
"""

import re

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

DATA = "experiments/data/reviews"
SHAPE = ModelConfig(  # 0.1 million weights
    embed_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, init_std=0.08
)

WORTH = {
    **dict.fromkeys(("superb", "lovely", "splendid"), 3),
    **dict.fromkeys(("charming", "clever", "bright"), 2),
    **dict.fromkeys(("warm", "fine", "neat", "calm"), 1),
    **dict.fromkeys(("plain", "small", "usual"), 0),
    **dict.fromkeys(("long", "slow", "odd"), -1),
    **dict.fromkeys(("dull", "noisy", "bland"), -2),
    **dict.fromkeys(("awful", "filthy", "horrid"), -3),
}
PARTS = ("room", "food", "staff", "view", "tour", "place", "light", "sound", "path", "hall")
KNOWN = {*WORTH, *PARTS, "the", "was", "and"}


def worth(review: str) -> float:
    """The true one: half the sum of what its different adjectives are worth, less half for each
    that is said again and for each word that is none."""
    words = re.findall(r"[^\s.,]+", review)
    said = [word for word in words if word in WORTH]
    faults = len(said) - len(set(said)) + sum(word not in KNOWN for word in words)
    return 0.5 * (sum(WORTH[word] for word in set(said)) - faults)


def by_worth(prompts: list, responses: list[str]) -> list[float]:
    return [worth(text) for text in responses]


SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=12
    ),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=64),
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
    rollout=RolloutOptions(batch_size=64, max_new_tokens=64),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="reward-model",
        iterations=500,
        eval_every=25,
        checkpoint_every=25,
        keep_best="-eval/loss",
    ),
    hparams=HParams(learning_rate=3e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", critic="separate", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=12
    ),
    rollout=RolloutOptions(batch_size=128, max_new_tokens=64),
    ppo=PPOOptions(epochs=2, minibatches=2, critic_warmup=4),
    run=RunOptions(iterations=60, eval_every=2),
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
