"""How far a policy may follow a reward model before what it stands for gets worse.

    ppo-jax sweep overoptimisation
    ppo-jax report overoptimisation
    make reproduce ONLY=R6      (both, best of n, and the laws: _overoptimisation.py)

Question: without a KL penalty, does the true worth of a policy's responses turn over while the
reward model's score goes on rising, by which law, and later for a larger reward model? The policy
writes menus of twelve dishes after SFT on ones where all are alike. What one is worth is a rule,
`worth`, that nothing is trained on: what its dishes are worth, less what it costs to serve some
again. Reward models learn from pairs of menus, of which the better one was chosen as often as
Bradley and Terry have it, seven times in ten. No dish stands in them twice: what that costs is for
the reward models to guess. They are 16 wide with 250 pairs, 32 with 1,000 and 128 with 8,000;
what width and pairs do alone is seen from 128 with 250 and 16 with 8,000.

Published: Gao, Schulman and Hilton 2022 (arXiv 2210.10760). With d the square root of the KL, the
true score of RL follows d (alpha - beta log d), that of best of n d (alpha - beta d); the proxy's
rises all the way; a larger proxy turns later and higher, as one with more pairs does, below 2,000
of which there is hardly a gain; best of n gains the same at less KL.

Prediction, before any run: all turn; of the first three the larger the later, by the law and as
seen in the mean of the seeds, and with more gained there. The law of each has an R2 above 0.9; the
score rises with d, by rank correlation above 0.9 in every run. The pairs are what counts: 128
with 250 turns before 32 with 1,000 does, and 16 with 8,000 after it. Best of 2 to 32 does not turn
within its reach of 1.6. It fails if a larger one of the three turns earlier, if an R2 is below 0.9,
or if a gain does not turn. The form of best of n is expected to fit RL better than its own: at few
nats a gain grows as d does, and the slope of d log d has no end at 0.

Trials before it, of seed 0 alone but where said, chose this worth, the last of them for its turn
and its R2: that the law fits is of a system chosen so that it does. The costs of repeating are in
no pair, so policies do not hang on them: those of 16 with 250 are the ones of the last trials,
judged by other costs. d at the turn, and R2 of the law through all evaluations:
- Reviews in words, whose worth was a rule on their adjectives: policies went in jumps from one
  degenerate review to another ("the room was splendid, the room was splendig"), R2 0.5 to 0.97.
- Menus of which pairs always had the better one chosen, dishes worth -1.9 to 1.9, 8, 32 and 128
  wide with 8,000 pairs; several costs of second, third and later servings. Turns between 1.9 and
  2.9 but for 128, which once did not turn up to 5.7; in most the wider turned later, in one 128
  first; R2 0.73 to 0.99. A reward model is sure of itself there, its score has an end at d 2, and
  what follows is drift: of ten runs of 64 iterations half had hardly turned.
- Worths a fifth as large, beside a table of what goes well after what, which 8,000 pairs do not
  teach: gains of 1.7, 2.5 and 3.6 at d 2.1, 3.2 and 2.7 for 8 wide with 250 pairs, 32 with 1,500,
  128 with 8,000; the last rose again. 8 with 8,000 had 5.2 at 5.3: the pairs count.
- Pairs chosen by chance, as here, dishes worth -0.38 to 0.38, 0.7 for a fourth serving and each
  after it, never in pairs: turns at 1.8 (16 with 250), 2.4 (32 with 1,000) and 2.2 (128 with
  8,000), R2 0.97, 0.91, 0.96; 128 with 250 at 1.8, 8 with 8,000 not before 3.7, 16 with 8,000 at
  2.6; 16 with 125 did not turn. 8 with 250, 32 with 500 and 1,500 at 2.1, 2.5 and 2.1. With 0.1,
  0.2 and 0.6 from the second on, 8,000 pairs: 8 at 3.7, 32 at 2.1, 128 at 2.4. No dish twice in
  pairs, 0.15 more for each serving: 16 with 250 at 1.6, 32 with 1,500 not up to 3.9.
- No dish twice in pairs, worths at even steps from -0.57 to 0.57, 0.65 for each serving after the
  first, 60 iterations, two seeds: 16 with 250 at 1.4 and, after a pause, 3.1; 32 with 1,000 at 2.1
  and 2.4; 128 with 8,000 at 2.9 twice; R2 0.93 and 0.90, 0.79 and 0.87, 0.93 and 0.89, less where a
  run stayed at one d and drifted. So the law goes through the mean of the seeds at each d.
- The same with 0.8, five seeds, all variants: of the first three turns by the law at 2.03, 2.14 and
  2.91, seen in the mean at 1.73, 2.02 and 2.43, gains 1.32, 1.59 and 2.00, R2 0.894, 0.904 and
  0.939; 128 with 250 seen at 2.06 and 16 with 8,000 at 2.51. With 60 iterations in place of 40 by
  the law at 1.81, 1.95 and, of three seeds, 2.22, R2 0.86, 0.88 and 0.88: more drift. So it was
  right but for one R2. The worths here, of which a few are far below the rest, and costs that grow
  less, are of a calculation: how gain and d of a policy go that follows worths with noise; the gain
  rises steeply first there, as the law has it.
- As here, with costs of 0.65, 0.5 and 0.3 and 40 iterations, five seeds of 16 with 250: R2 0.96,
  but a gain that at the end, at d 2.3 to 4, was 0.92 after 1.15 and in one seed still rose. With 1,
  0.8 and 0.5 turns at 1.1 to 1.9, R2 0.87: the gain falls from 0.87 to 0.30 sooner than the law's.

Seen, five seeds (experiments/results/overoptimisation, laws.md):
- Of 16 with 250, 32 with 1,000 and 128 with 8,000 all 15 runs turn, while the score goes on rising:
  rank correlation with d 0.977 to 1.000, largest fall 4.6 % of its gain. The law has an R2 of
  0.937, 0.933 and 0.911 and turns at d 1.87 (1.39 to 2.49), 2.11 (1.76 to 2.80) and 2.19 (1.76 to
  3.00); the mean of the turns seen is 2.00, 2.12 and 2.98, gains there 1.05, 1.21 and 1.53, 0.61,
  0.82 and 1.06 at the end. The larger the later, and the higher, as predicted, but by less than
  five seeds are apart: 1.2 to 3.2, 1.5 to 3.9 and 2.0 to 5.5. Alone a seed has an R2 of 0.58 to
  0.96.
- The pairs are what counts: 128 with 250 has turns and gains as 16 with 250, 2.29 and 1.03, though
  not before 32 with 1,000. 16 with 8,000 is later and higher than 128 with 8,000, 3.22 by the law
  and 1.65, in one seed not at all, against the prediction: here width alone does not make a turn
  later, it makes it earlier.
- Best of n does not turn; at d 1.6 it has gained more than RL has anywhere near it. Its own form
  fits it with 0.96 to 0.98. That it fits RL better is so of 16 with 250 and of 128 with 8,000
  (0.976 and 0.931), not of 32 with 1,000 (0.846): not as predicted.
- That the R2 are above 0.9 hangs on what repeating costs, as the trials show: a gain that falls as
  fast as it rose is not of this form.

Hardware: two CPU cores; a run, its reward model and its share of SFT took 70 to 140 s of a core,
25 of them about 40 min; best of n 20 s each.
"""

import math

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
# Most are alike and a few are far worse: -1.0 to 0.36, their mean near 0.
WORTH = {
    dish: round(0.37 * (1 + math.log(((7 * n) % 20 + 0.5) / 20)), 2)
    for n, dish in enumerate(DISHES)
}
AGAIN = (0.0, 0.8, 0.6, 0.35)  # what the first, second, third and each later serving of one costs
COURSES = 12


def worth(menu: str) -> float:
    """The true one: what its dishes are worth, less what it costs that some were served before, and
    less a point for each character that is no dish."""
    total = 0.0
    for n, dish in enumerate(menu):
        cost = AGAIN[min(menu[:n].count(dish), len(AGAIN) - 1)]
        total += WORTH[dish] - cost if dish in WORTH else -1.0
    return round(total, 2)


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
    run=RunOptions(iterations=50, eval_every=1),
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


def proxy(width: int, pairs: str) -> dict:
    return {
        "reward-model.model.shape.embed_dim": width,
        "reward-model.data.path": f"{DATA}/{pairs}.jsonl",
    }


RUNS = {  # width of the reward model, pairs that it has learnt from
    "16-of-250": proxy(16, "pairs_250"),
    "32-of-1000": proxy(32, "pairs_1000"),
    "128-of-8000": proxy(128, "pairs"),
    "128-of-250": proxy(128, "pairs_250"),
    "16-of-8000": proxy(16, "pairs"),
}
SEEDS = range(5)
METRICS = ("eval/scores", "eval/judge", "eval/kl")
