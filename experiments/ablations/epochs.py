"""How often a batch is worth learning from: sums, right or wrong.

    ppo-jax sweep epochs --vmap
    ppo-jax report epochs

Question: with the same samples, how many optimiser steps pay, 1 to 32 an iteration?

Published: lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593) take 4 epochs of 1
minibatch, as do the N+ details (Huang et al. 2024, arXiv 2403.17031). Noukhovitch et al. 2024
(arXiv 2410.18252): the further off-policy the samples are, the worse what is learnt from them.

Prediction, before any run: held-out sums rise from 1 step to 4 by more than the interval, stay
within it up to 16 (4 x 4), and with 32 (8 x 4) are no more than with 8 (2 x 4). KL to the start
and clipped share (of all iterations) rise with the number of steps, so that right sums a nat fall.
As many steps by epochs or by minibatches (4 x 1, 1 x 4) end with the same sums; 4 x 1 has the
larger clipped share, its later steps being on tokens seen before. It fails if 1 step has as many
sums right as 4, or if 32 has more than all others by more than the interval.

Seen: held-out sums right with 1 step 0.728, with 4 0.839 (1 x 4) and 0.966 (4 x 1), with 16 (4 x 4)
0.981, with 32 (8 x 4) 0.195, one seed of three at none: it has not failed, but three things are not
as predicted. As many steps are not the same: 4 on the whole batch have more right than 4 on a part
each, 0.966 to 0.839; of 8 the same within the interval, 0.959 (8 x 1) and 0.943 (2 x 4). Sums rise
up to 16 steps. KL and clipped share rise with the steps, but right sums a nat do not fall: 0.165 at
1 step, 0.18 at 2 to 16. At 32 the policy is lost at 24 nats, a fifth of its tokens clipped. As
predicted 4 x 1 has the larger clipped share, 0.024 to 0.012. experiments/results/epochs.

Hardware: two CPU cores; 24 runs in eight programs took 28 min with other work on the cores, SFT
having been run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)

GRID = {"ppo.epochs": (1, 2, 4, 8), "ppo.minibatches": (1, 4)}
SEEDS = range(3)
METRICS = (
    "eval/scores",
    "objective/scores",
    "objective/kl",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
)
WINDOWS = {"policy/approxkl_avg": (0, 200), "policy/clipfrac_avg": (0, 200)}  # all of a run
