"""When the clip of the ratio does anything: sums, right or wrong.

    ppo-jax sweep clipping --vmap
    ppo-jax report clipping

Question: how much of PPO's stability is the clip, at steps small and large? inf is no clip in the
same program. Low and high clip are the same number; past 1 there is nothing left to clip below.

Published: PPO (Schulman et al. 2017, arXiv 1707.06347) has 0.2. RLOO (Ahmadian et al. 2024, arXiv
2402.14740) sees the clip act in fewer than 5 % of batches. In the reference run of the N+ details
(Huang et al. 2024, arXiv 2403.17031) 2.5 to 7 % of the tokens of epochs two to four are clipped,
none in the first.

Prediction, before any run:
- `one-step`, one epoch of one minibatch: the ratio is 1 to rounding, so 0.2 and inf end with
  parameters that are equal bit for bit, and every metric but times is the same number.
- 4 epochs: no clip differs from 0.2 by more than its interval in held-out sums; the clipped share
  falls from each clip to the next larger one, `policy/approxkl_avg` and the largest |ratio - 1|
  rise.
- 16 epochs, or ten times the learning rate: without a clip `policy/approxkl_avg` is at least twice
  that with 0.2, and the sums are fewer by more than the interval in at least one of the two.
It fails if one bit differs at `one-step`, or if neither 16 epochs nor the larger learning rate
needs the clip. The three numbers of updates are means over all iterations: the last ones, where
the learning rate ends at 0, say nothing. Added when first iterations of the others had been seen
(at ten times the learning rate 0.2 lost all sums as well): at a quarter of it no clip has as many
sums right as 0.2, to 0.05.

Hardware: two CPU cores; 55 runs, 35 of them of 1.2 minutes, 10 of 4 (16 epochs), 10 of 40 s, and
SFT of 40 s for each of the five seeds, by estimate. Not yet run.
"""

from math import inf

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)

SETTINGS = {  # name -> (what a run has beside its clip, its clips; the first run is the report's)
    "epochs=4": ({"ppo.epochs": 4}, (0.2, 0.05, 0.1, 0.4, inf)),
    "epochs=4,lr=0.004": ({"ppo.epochs": 4, "hparams.learning_rate": 4e-3}, (0.2, inf)),
    "epochs=4,lr=0.0001": ({"ppo.epochs": 4, "hparams.learning_rate": 1e-4}, (0.2, inf)),
    "epochs=16": ({"ppo.epochs": 16}, (0.2, inf)),
    "one-step": ({"ppo.epochs": 1, "ppo.minibatches": 1}, (0.2, inf)),
}
RUNS = {
    f"{name},clip={clip:g}": {**changes, "hparams.clip_low": clip, "hparams.clip_high": clip}
    for name, (changes, clips) in SETTINGS.items()
    for clip in clips
}
SEEDS = range(5)
METRICS = (
    "eval/scores",
    "objective/kl",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "val/ratio_max_dev",
)
WINDOWS = dict.fromkeys(METRICS[2:], (0, 200))  # all of a run
