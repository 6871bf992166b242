"""What a penalty on the KL to the reference costs, and what a target for it holds: sums, right or
wrong.

    ppo-jax sweep kl_penalty --vmap     (--list shows the cells)
    ppo-jax report kl_penalty           (--window 0.5 --metrics objective/kl: mean of the last half)

Question: does a larger coefficient beta buy a smaller KL at the price of sums, and does the
adaptive coefficient hold the KL at the target it is given? Without a penalty there is nothing to
adapt: a coefficient of 0 stays 0. Targets are this task's own; gain and damping are those of
`sentiment`, since Ziegler's 2 % an iteration are too slow for a run of 200.

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

Hardware: two CPU cores; 30 runs of about a minute, and SFT of 40 s for each of the five seeds, by
estimate. Not yet run.
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
SEEDS = range(5)
METRICS = ("eval/scores", "objective/scores", "objective/kl", "objective/kl_coef")
