"""What a penalty on the KL to the reference costs, and what a target for it holds: sums, right or
wrong.

    ppo-jax sweep kl_penalty --vmap     (--list shows the cells)
    ppo-jax report kl_penalty           (--window 0.5 --metrics objective/kl: mean of the last half)

Question: does a larger coefficient beta buy a smaller KL at the price of sums, and does the
adaptive coefficient hold the KL at the target it is given? Without a penalty there is nothing to
adapt: a coefficient of 0 stays 0. Targets are this task's own; gain and damping are those of
`sentiment`, since the 2 % an iteration of Ziegler's paper (1 % in its code) are too slow for a run
of 200.

Published: Ziegler et al. 2019 (arXiv 1909.08593) hold the KL at a target with an adaptive
coefficient. Gao et al. 2022 (arXiv 2210.10760): the penalty moves a run along the curve of true
score over KL, as stopping early does, and does not raise the curve. Secrets of RLHF (arXiv
2307.04964): a KL penalty on each token is what keeps training stable. A true score apart from the
reward is not to be had here, where the reward is the aim; see `kl_penalty_sentiment`.

Prediction, before any run: the KL at the end falls strictly from each beta to the next. The best
policy is the reference's times exp(right / beta): odds of a right answer e^20 times those of SFT at
0.05, e^5 = 148 times at 0.2. So 0, 0.01 and 0.05 have as many held-out sums right as each other
within their intervals, 0.2 fewer by more than its interval. The adaptive runs have a mean KL over
the last half within 10 % of their target, if beta 0 passes it. It fails if two neighbouring betas
have their means of KL the other way round, if 0.2 is not the lowest, or if a target is missed.
Added when target 0.5 had been seen to run away, before its last two variants were run with five
seeds: a critic of its own, or a quarter of the learning rate, holds it within 10 %.

Seen, five seeds, differences to beta 0 in brackets (experiments/results/kl_penalty):
- KL of the last tenth for beta 0, 0.01, 0.05 and 0.2: 5.41, 5.46, 4.32, 0.48 nats. The first two
  are the other way round, by less than the interval of their difference (over the last half they
  are 5.43 and 5.33): by its letter the prediction fails there, and a beta of 0.01 does nothing.
- Sums: 0.887, 0.940 (-0.02 to +0.16), 0.820 (-0.10 to -0.03), 0.418 (-0.53 to -0.37). That 0.05
  costs something was not predicted: what is best under it has nearly all sums right, but the way
  there is longer, and the sums were still rising (0.68, 0.79, 0.82 at iterations 100, 150, 200).
- Target 2 is held: 2.005 nats (2.001 to 2.009) over the last half, at a coefficient of 0.10.
- Target 0.5 is not, in any seed: the first update alone moves this policy by 1.3 to 3.2 nats, the
  KL comes down to 0.5 to 1.5, in one seed to 2.2, and stays above the target, so the coefficient
  grows; past 3, after 11 to 17 iterations, the critic's loss, which grows with its square, moves
  the trunk that critic and policy share: the KL rises by that, and with it the coefficient, to 1e7
  and 25 nats, with no sum right.

Hardware: two CPU cores; 30 runs as two programs and SFT for each of the five seeds took 22 min of
one core.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)  # no KL penalty

ADAPTIVE = {
    "reward.kl_controller": "adaptive",
    "hparams.kl_coef": 0.2,
    "hparams.kl_gain": 0.4,
    "hparams.kl_damping": 1.0,
}
RUNS = {f"beta={beta:g}": {"hparams.kl_coef": beta} for beta in (0.0, 0.01, 0.05, 0.2)}
RUNS |= {f"target={nats:g}": {**ADAPTIVE, "hparams.kl_target": nats} for nats in (0.5, 2.0)}
RUNS |= {
    "target=0.5,separate": {**RUNS["target=0.5"], "model.critic": "separate"},
    "target=0.5,lr=0.0001": {**RUNS["target=0.5"], "hparams.learning_rate": 1e-4},
}
PAIRS = [("target=0.5,separate", "target=0.5"), ("target=0.5,lr=0.0001", "target=0.5")]
SEEDS = range(5)
METRICS = ("eval/scores", "objective/scores", "objective/kl", "objective/kl_coef")
