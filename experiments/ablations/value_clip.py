"""Whether clipping the critic's step helps: sums, right or wrong.

    ppo-jax sweep value_clip --vmap
    ppo-jax report value_clip

Question: is a critic that may move by no more than 0.2, or 0.05, from what it said at rollout a
better one? inf is no clip in the same program.

Published: the settings of lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593) clip at 0.2.
Andrychowicz et al. 2020 (arXiv 2006.05990) study it in control, and are said to find that it does
not help and may hurt.

Prediction, before any run: values lie between 0 and 1 and two epochs move few of them by 0.2: inf
and 0.2 do not differ in held-out sums or in explained variance by more than their intervals, and
less than 2 % of values are clipped at the end. At 0.05 the clipped share is larger, the sums are
as many. It fails if inf and 0.2 differ in sums, or if 0.05 has more sums right than inf, by more
than the interval.

Seen, three seeds (experiments/results/value_clip): held-out sums 0.953 without a clip, 0.928 with
0.2, 0.959 with 0.05. That the tightest clip is as good as none is as predicted. 0.2 is lower than
none in each seed, by 0.025 (0.018 to 0.032): by its letter the prediction fails there, though so
little may come of rounding alone (see README.md), and of what it clips it cannot well come: 0.02 %
of the values over a run, none at the end. 0.05 clips 3 % over a run and 4 to 7 % in the first 20
iterations. Explained variance at the end is -0.04, 0.17 and -0.06: that of 0.2 is higher than
none's in each seed, by 0.21 (0.15 to 0.26), against the prediction too, and as little explained.

Hardware: two CPU cores; 9 runs as one program took 9.5 min of one core, SFT of each seed 1 min.
"""

from math import inf

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)  # no clip

GRID = {"hparams.value_clip": (inf, 0.2, 0.05)}
SEEDS = range(3)
METRICS = ("eval/scores", "objective/scores", "value/explained_variance", "val/clipfrac_avg")
