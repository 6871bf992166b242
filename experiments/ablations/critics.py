"""Where the baseline comes from: a head on the policy's trunk, a model of its own, or no critic.

    ppo-jax sweep critics               (each run by itself: seconds and memory are its own)
    ppo-jax report critics

Question: what does a critic buy in sums, and what does it cost in seconds and memory? Shared trunk
with the value loss weighed 0.5 or 0.1; a critic of its own that starts as a copy of the policy; the
same that learns alone for 20 of the 200 iterations; RLOO and the group mean, 4 samples of each of
64 prompts in place of 256 prompts, and the shared trunk on those; REINFORCE with the batch's mean.

Published: RLOO (Ahmadian et al. 2024, arXiv 2402.14740) is as good as PPO or better with 4 samples,
without the critic's memory. The N+ details (Huang et al. 2024, arXiv 2403.17031) have a critic of
its own that starts from the reward model. VC-PPO (arXiv 2503.01491): a critic that starts so is
biased, and pre-training it is essential where responses are long.

Prediction, before any run: a response is 4 tokens and 256 of them are a good baseline: all seven
have held-out sums right within 0.05 of the best. Explained variance at the end is higher of a
critic of its own than of a head with 0.1. The scores of the first 20 iterations do not fall in
any: the reward starts at 0.3, not high enough to be lost, so pre-training removes no dip and costs
its 20 iterations. A critic of its own makes an iteration at least 1.4 times as long as the shared
trunk; without a critic it is shorter. It fails if a critic-free run is below all with a critic by
more than 0.05, or if pre-training ends above the same critic without it by more than the interval.
Added when RLOO had been seen below REINFORCE, before `groups` was run: if the fewer prompts are
why, the shared trunk with 4 samples of 64 loses as much to 256 prompts, and is alike to RLOO, to
0.05.

Seen, five seeds (experiments/results/critics):
- Held-out sums: a critic of its own 0.943, shared with 0.5 0.940, pre-trained 0.916, shared with
  0.1 0.876; REINFORCE 0.864, RLOO 0.863, group mean 0.862. Not all are within 0.05 of the best, as
  predicted; those without a critic are 0.08 below it, but 0.01 only below the lowest critic.
- The shared trunk with 4 samples of 64 prompts has 0.812 (one seed 0.33), 0.13 less than with 256
  prompts (0.03 to 0.32), and RLOO 0.05 more than that (-0.04 to 0.21): on one and the same prompts
  it is as good without a critic, and what it loses, the fewer prompts lose. A quarter of the
  groups of four are all right or all wrong at 0.3 right, and teach nothing; scores of RLOO fall to
  0.18 in the first 20 iterations and are still rising at the end (0.63, 0.79, 0.88 at iterations
  100, 150, 200). With 512 sequences and 300 iterations it has 0.98 right (`arithmetic.py`).
- Explained variance of a critic of its own 0.46, of the shared one with 0.1 0.09: as predicted.
- The scores of the first 20 iterations of those with a critic and 256 prompts fall by 0.04 at most
  and pre-training removes nothing: as predicted; at iteration 20 it is behind by 0.15, at the end
  by 0.03.
- Seconds of an iteration, each run on a core of its own: a critic of its own 1.77 times the shared
  trunk's (predicted: 1.4 at least); without one as long as the shared trunk, 1.00 to 1.01
  (predicted: shorter), whose critic is one column of a product.
- Memory of the process where it found its program compiled: 709 to 730 MB with the shared trunk,
  762 to 781 with a critic of its own, 700 to 716 without one; nearly all of it is not the 0.36
  million weights'. Those that compiled took 1.3 to 1.4 GB, and what the table says of intervals is
  of all five.

An earlier run of the first seven, on another machine and so from other SFT weights, had 0.948 of a
critic of its own, 0.924 pre-trained, 0.923 and 0.887 shared with 0.1 and 0.5, REINFORCE 0.849, RLOO
0.802, group mean 0.743: the order within those with a critic and within those without is not to be
had from five seeds.

Hardware: two CPU cores; 40 runs, each by itself, a core each (`sweep critics --index N`, even N on
one, odd N on the other), and SFT for each of the five seeds took 24 min.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)  # shared trunk, value loss weighed 0.5

GROUPS = {"rollout.samples_per_prompt": 4}  # of 64 prompts
RUNS = {
    "shared,vf=0.5": {},
    "shared,vf=0.1": {"hparams.vf_coef": 0.1},
    "shared,vf=0.5,groups": GROUPS,
    "separate": {"model.critic": "separate"},
    "separate,pretrained": {"model.critic": "separate", "ppo.critic_warmup": 20},
    "rloo": {"ppo.advantage": "rloo", **GROUPS},
    "group_mean": {"ppo.advantage": "group_mean", **GROUPS},
    "reinforce": {"ppo.advantage": "reinforce"},
}
PAIRS = [
    ("separate,pretrained", "separate"),
    ("rloo", "shared,vf=0.5,groups"),
    ("reinforce", "rloo"),
]
SEEDS = range(5)
METRICS = (
    "eval/scores",
    "objective/scores",
    "value/explained_variance",  # of those with a critic
    "time/iteration",
    "memory/peak_bytes",  # of the process
)
