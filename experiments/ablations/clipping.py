"""When the clip of the ratio does anything: sums, right or wrong.

    ppo-jax sweep clipping --vmap
    ppo-jax report clipping
    .venv/bin/python experiments/ablations/_clipping.py     (`one-step`, bit by bit)

Question: how much of PPO's stability is the clip, at steps small and large? inf is no clip in the
same program. Low and high clip are the same number; past 1 there is nothing left to clip below.

Published: PPO (Schulman et al. 2017, arXiv 1707.06347) has 0.2. RLOO (Ahmadian et al. 2024, arXiv
2402.14740) sees the clip act in fewer than 5 % of batches. In the reference run of the N+ details
(Huang et al. 2024, arXiv 2403.17031) 2.5 to 7 % of the tokens of epochs two to four are clipped,
none in the first.

Prediction, before any run:
- `one-step`, one epoch of one minibatch: the ratio is 1 to rounding, so 0.2 and inf end with
  parameters that are equal bit for bit, and every metric but times is the same number.
- 4 epochs: no clip differs from 0.2 by more than its interval in held-out sums (none of the others,
  inf among them: said later); the clipped share falls from each clip to the next larger one,
  `policy/approxkl_avg` and the largest |ratio - 1| rise.
- 16 epochs, or ten times the learning rate: without a clip `policy/approxkl_avg` is at least twice
  that with 0.2, and the sums are fewer by more than the interval in at least one of the two.
It fails if one bit differs at `one-step`, or if neither 16 epochs nor the larger learning rate
needs the clip. The three numbers of updates are means over all iterations: the last ones, where
the learning rate ends at 0, say nothing. Added when first iterations of the others had been seen
(at ten times the learning rate 0.2 lost all sums as well): at a quarter of it inf has as many sums
right as 0.2, to 0.05.
Added when all of that had been seen, before these were run: with 1 epoch, of four minibatches, no
clip differs from 0.2 by more than 0.05 in sums, and fewer than 5 % of the tokens are clipped at
0.2; with 16 epochs `policy/approxkl_avg` rises from each clip to the next larger one, and 0.05 has
more sums right than 0.2, which has none, by more than its interval.

Seen, five seeds (experiments/results/clipping):
- `one-step`: parameters equal bit for bit in five of five seeds, and every metric but times
  (results/clipping/identity.md): as predicted.
- 4 epochs, against the prediction: without a clip all sums are lost in three seeds and half of them
  in a fourth, 0.28 held-out ones right, where 0.05, 0.1, 0.2 and 0.4 have 0.952, 0.905, 0.966 and
  0.960. By the letter 0.05 and 0.1 differ from 0.2 too; but when the same runs were part of
  another program, on one core, those four had 0.912, 0.936, 0.857 and 0.902, and inf none in all
  five seeds: one seed of five that stays behind, at 0.1 here and at 0.2 there, is what differs, and
  which it is depends on rounding. Clipped share 7.5, 6.7, 5.6 and 4.7 %, and `policy/approxkl_avg`
  0.09, 0.11, 0.13, 0.21 and without 0.97 nats, go as predicted; the largest |ratio - 1| is 4 to 7
  for all, in no order, and 110 without a clip.
- 16 epochs: without a clip 2.9 nats in place of 0.75, 3.9 times as many; at ten times the learning
  rate 1.24 and 0.56, 2.2 times: as predicted, twice at least (1.7 in that other program). But no
  sum is right in any of these runs, with 0.2 either: steps so large that the clip does not save the
  run, so by its letter the prediction fails, and what shows the need of a clip is 4 epochs at the
  learning rate of all ablations here.
- At a quarter of it inf has as many sums right as 0.2, 0.879 and 0.869, as predicted, at 0.065 and
  0.015 (`policy/approxkl_avg`). There the clip is not needed, as RLOO's finding has it, though it
  acts in 98 % of the iterations, on 3.4 % of the tokens. At the usual learning rate the first
  iteration alone has, in this estimate, 0.7 to 2.7 nats with 0.2, 2.4 to 6.6 without a clip.
- 1 epoch, as predicted: 0.80 to 0.82 with any clip, 0.85 without, 0.032 more than with 0.2 (0.010
  to 0.054, 1.3 % of whose tokens are clipped). 16 epochs: nats rise as predicted, 0.43, 0.61, 0.75,
  1.4, 2.9; 0.05 has no sum right either, against the prediction.
- Is a smaller clip steadier? Its updates are smaller at each number of epochs; runs that are lost
  are lost with it too, and those that are not have no more sums right.

Hardware: two CPU cores; 105 runs, each seed's SFT done before, took 85 min of both as programs of
up to 45 runs each.
"""

from math import inf

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)

CLIPS = (0.2, 0.05, 0.1, 0.4, inf)
SETTINGS = {  # name -> (what a run has beside its clip, its clips; the first run is the report's)
    "epochs=4": ({"ppo.epochs": 4}, CLIPS),
    "epochs=4,lr=0.004": ({"ppo.epochs": 4, "hparams.learning_rate": 4e-3}, (0.2, inf)),
    "epochs=4,lr=0.0001": ({"ppo.epochs": 4, "hparams.learning_rate": 1e-4}, (0.2, inf)),
    "epochs=16": ({"ppo.epochs": 16}, CLIPS),
    "epochs=1": ({"ppo.epochs": 1}, CLIPS),
    "one-step": ({"ppo.epochs": 1, "ppo.minibatches": 1}, (0.2, inf)),
}
RUNS = {
    f"{name},clip={clip:g}": {**changes, "hparams.clip_low": clip, "hparams.clip_high": clip}
    for name, (changes, clips) in SETTINGS.items()
    for clip in clips
}
PAIRS = [  # within a setting, to 0.2
    (f"{name},clip={clip:g}", f"{name},clip=0.2")
    for name, (_, clips) in SETTINGS.items()
    for clip in clips[1:]
    if name != "epochs=4"
]
SEEDS = range(5)
METRICS = (
    "eval/scores",
    "objective/kl",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "val/ratio_max_dev",
)
WINDOWS = dict.fromkeys(METRICS[2:], (0, 200))  # all of a run
