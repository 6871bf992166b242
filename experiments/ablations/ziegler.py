"""The shape of Ziegler's curves on SmolLM2: the KL goes to its target, and what it costs is found.

    ppo-jax sweep ziegler
    ppo-jax report ziegler

On a GPU or TPU with Ziegler's own target, sizes and steps of the coefficient, all in the line:
ppo-jax sweep ziegler --run.dir runs/6-nats --hparams.kl_target 6 --hparams.kl_gain 0.05
--rollout.batch_size 512 --run.iterations 1953 (not run: none was to be had).

Question: does the adaptive coefficient of 1909.08593, without our damping of it, bring the KL to
its target and hold it there? The target is 2 nats of a continuation of 24 tokens: 60 iterations of
32 sequences on a CPU, where Ziegler's 6 nats had 1,953 of 512. It moves by up to 8 % an iteration
for that, theirs by 1 % in its code.

Published: Ziegler et al. 2019 (arXiv 1909.08593) and its reproduction ("The N implementation
details of RLHF with PPO", Hugging Face blog, 2023), GPT-2 of 124 million weights, ten seeds, read
off the plot: the KL overshoots 6 to about 7.5 and is 6.0 flat; the coefficient dips from 0.15 to
0.11 and rises to 0.25; the score less the KL's cost spikes, dips and recovers; the score rises
throughout.

Prediction, before any run: in each seed the coefficient falls below half of its start while the KL
is below 2, and ends above its lowest value by half or more; the KL passes 2.4 once, and its mean
over the last half is within 10 % of 2. The score rises. Score less cost does not dip: with rewards
below 1 the coefficient is small where the KL is large. It fails if a mean KL of the last half is
off by more, or if a coefficient does not turn.

Seen, three seeds (experiments/results/ziegler): the coefficient finds itself, but the KL has not
settled when the run ends, so the prediction fails. From 0.15 the coefficient falls to 0.029, 0.031
and 0.019 while the KL is below 2, turns after 29, 21 and 26 iterations and rises to 0.142, 0.080
and 0.180. The KL overshoots to 3.6, 3.2 and 3.4, by more than the published 7.5 for 6; over the
last half it is 2.51, 1.95 and 2.78, over the last ten iterations 1.7, 1.9 and 2.4. 60 steps of 8 %
are one swing there and back; the published 1,953 of 1 % go four times as far. The score rises from
0.23, 0.23 and 0.22 in the first ten iterations to 0.43, 0.48 and 0.55 in the last ten. Score less
cost rises to 0.41, 0.36 and 0.45, by tens of iterations, and in two seeds comes down to 0.21 and
0.19 while the coefficient grows: against the prediction, and as published it spikes and dips; that
it recovers is not seen in 60.

Hardware: two CPU cores and 10 GB of memory; 3 runs of 24 minutes, each on one core, with other work
on the other.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("sentiment")
BASE = replace(
    PARENT.base,
    **{
        "run.iterations": 60,
        "optim.schedule": "linear",
        "hparams.kl_coef": 0.15,
        "hparams.kl_target": 2.0,
        "hparams.kl_damping": 0.0,
    },
)

RUNS = {"adaptive": {}}
SEEDS = range(3)
METRICS = ("objective/kl", "objective/kl_coef", "objective/scores", "objective/rlhf_reward")
WINDOWS = {"objective/kl": (30, 60)}
