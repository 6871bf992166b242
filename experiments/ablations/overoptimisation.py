"""How far a policy may follow a reward model before what it stands for gets worse.

    ppo-jax sweep overoptimisation
    ppo-jax report overoptimisation
    make reproduce ONLY=R6      (both, best of n, and the laws: _overoptimisation.py)

Question: without a KL penalty, does the true worth of a policy's responses turn over while the
reward model's score goes on rising, by which law, and later for a larger reward model? The policy
writes menus of twelve dishes after SFT on ones where all are alike. What one is worth is a rule,
`worth`, that nothing is trained on: what its dishes are worth, less what a second, a third and
each later serving of the same one costs. Three reward models, 8, 32 and 128 wide, learn from 8,000
pairs of menus, none of which serves a dish four times: what that costs is for them to guess.

Published: Gao, Schulman and Hilton 2022 (arXiv 2210.10760). With d the square root of the KL, the
true score of RL follows d (alpha - beta log d), that of best of n d (alpha - beta d); the proxy's
rises all the way; a larger proxy turns later and higher; best of n gains the same at less KL.

Prediction, before any run: every run turns, in the mean later, and with more gained there, the
wider the reward model is. The law fits with an R2 above 0.9 for each width, over the d that every
run reaches; the reward model's score rises with d, by rank correlation above 0.9 in every run. Best
of 2 to 32 does not turn within its reach of 1.6. It fails if a turn of a wider model is earlier, if
an R2 is below 0.9, or if a gain does not turn. The form of best of n is expected to fit RL better
than its own: at few nats a gain grows as d does, and the slope of d log d has no end at 0.

Trials before it, of seed 0 alone, chose the rule of this worth, and how rarely pairs show what it
costs; d at the turn, and R2 of the law over all that the run reached:
- Reviews in words, whose worth was a rule on their adjectives: policies went in jumps from one
  degenerate review to another ("the room was splendid, the room was splendig"), R2 0.5 to 0.97.
- Menus where a dish served again is worth nothing, pairs of 3 to 20 dishes: 8 turns at 2.8, R2
  0.90; 128 has learnt all there is and does not turn up to 5.7.
- Each serving 0.8 dearer than the one before, pairs of 12 to 20: 8 turns at 2.4, 0.73; 32 and 128
  hardly, near 2.9, 0.96. Pairs without any repeated dish but for 2 %: 128 turns first, at 1.9.
- Costs of 0.5, 1 and from the fourth on 3, pairs of 14 to 20, 7 % with a fourth: turns at 2.4, 2.5
  and 2.7, R2 0.76, 0.76, 0.86, a third of the gain lost. With 2 in place of 3 at 2.7 (8) and 2.8
  (128), 0.93 and 0.92, a tenth lost. With 2.5 at 2.5, 2.9, 2.9, but of ten runs of 8 and 32 (five
  seeds, 64 iterations) half had hardly turned or not at all.
- As here, with 3 for 2: at 2.5, 2.7 and 2.9, up to d 3 R2 0.93, 0.99, 0.97, beyond less. As here,
  8 alone, four seeds: turns at 2.7, R2 to d 3 0.92 to 0.99; where a worth is learnt whole, a reward
  model is sure of itself, its score has an end at d 2, and what follows is drift.
- Worths a fifth as large, beside a table of what goes well after what, which 8,000 pairs do not
  teach: labels count, gains of 1.7, 2.5 and 3.6 at d 2.1, 3.2 and 2.7 for 8 wide with 250 pairs, 32
  with 1,500, 128 with 8,000; the last rose again, to 4.1 at 5.0. The width alone does not: 8 with
  8,000 had 5.2 at 5.3. The score rises with d there but for 250 pairs, by rank correlation 0.99.

Hardware: two CPU cores; 15 runs of about a minute, as many reward models and five of SFT of about
as long, by estimate. Not yet run.
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
SERVING = (0.0, 0.3, 0.6, 2.0)  # what the first, second, third and each later one of a dish costs
COURSES = 12


def worth(menu: str) -> float:
    """The true one: what its dishes are worth, less what each one costs that was served before, and
    less a point for each character that is no dish."""
    total = 0.0
    for n, dish in enumerate(menu):
        before = menu[:n].count(dish)
        cost = SERVING[min(before, len(SERVING) - 1)]
        total += WORTH[dish] - cost if dish in WORTH else -1.0
    return round(total, 1)


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
    run=RunOptions(iterations=120, eval_every=2),
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
SEEDS = range(5)
METRICS = ("eval/scores", "eval/judge", "eval/kl")
