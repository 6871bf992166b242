"""What the size of a reward does beside a KL penalty: sums, right or wrong.

    ppo-jax sweep reward_scale --vmap
    ppo-jax report reward_scale

Question: how far does a reward of another size move the policy, and does normalising it, by the
running mean and deviation of the scores, take the size out? A right sum earns 10, and `score_clip`
makes that 0.1, 1 or 10: of a score that is 0 or 10, a clip is a scale. `eval/exact_match` is the
share of right sums all the same. A normalised score has no scale left, so there is one such run and
not three; it is clipped after that. The published clip at 5 would clip nothing of it: at 1 it does.
All have a KL penalty of 0.05, without which a scale is no choice between two aims.

Published: lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593) normalise the reward model
to mean 0 and deviation 1 over samples of the reference. Secrets of RLHF (arXiv 2307.04964):
normalised and clipped scores make PPO stable.

Prediction, before any run: the score's size against 0.05 is what counts, as beta 0.5, 0.05 and
0.005 would: the KL at the end rises strictly from scale 0.1 to 1 to 10, and the sums at 0.1 are
fewer than at 1 by more than the interval. The normalised run has a KL between those of 1 and 10: a
deviation of 0.3 to 0.5 of a right sum makes a scale of 2 to 3. Clipped at 1, its KL is no larger.
It fails if the KL does not rise with the scale, or if the normalised run's is outside of the two.
On the trunk that the critic shares, a score of 10 is also a critic's loss a hundred times as large;
with a critic of its own the KL at 10 is above that at 1 all the same.

Seen, three seeds (experiments/results/reward_scale): as predicted.
- KL 0.12, 4.7 and 7.4 nats at scale 0.1, 1 and 10; held-out sums 0.35 at 0.1 and 0.90 at 1. At 10
  they are 0.17, which was not said: with a critic of its own they are 0.94 there, at 5.1 nats
  where scale 1 has 4.4 (0.86 of the sums). What is lost at 10 on the shared trunk is lost to the
  critic's loss; what the penalty weighs is the smaller part of the KL's rise.
- Normalised: 5.3 nats, between 1 and 10, and clipped at 1 too, 5.25. It has the most sums right,
  0.979, clipped 0.965: 2 to 3 times the scale, without a critic's loss that grows with it.

Hardware: two CPU cores; 21 runs as four programs took 26 min of one core, SFT of each seed 1 min.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment
from ppo_jax.rewards.exact import exact_match

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)
REWARD = [(10.0, exact_match("answer"))]

PENALTY = {"hparams.kl_coef": 0.05}
NORMALISED = {**PENALTY, "reward.normalize_scores": True}
RUNS = {f"scale={c:g}": {**PENALTY, "hparams.score_clip": c} for c in (1.0, 0.1, 10.0)} | {
    "normalised": NORMALISED,
    "normalised,clip=1": {**NORMALISED, "hparams.score_clip": 1.0},
}
RUNS |= {
    f"scale={c:g},separate": {**PENALTY, "hparams.score_clip": c, "model.critic": "separate"}
    for c in (1.0, 10.0)
}
SEEDS = range(3)
METRICS = ("eval/exact_match", "reward/exact_match", "objective/kl", "value/explained_variance")
