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
- Held-out sums: a critic of its own 0.948, pre-trained 0.924, shared with 0.1 0.923, with 0.5
  0.887; REINFORCE 0.849, RLOO 0.802, group mean 0.743. The prediction fails: what compares samples
  of one prompt is below all with a critic, RLOO by 0.085 (0.05 to 0.11) to the lowest. It sees 64
  prompts where the others see 256, and a quarter of the groups of four are all right or all wrong
  at 0.3 right, and teach nothing; its scores fall to 0.18 in the first 20 iterations and are still
  rising at the end (0.61, 0.72, 0.80 at iterations 100, 150, 200). With 512 sequences and 300
  iterations RLOO has 0.98 right (`arithmetic.py`).
- Explained variance of a critic of its own 0.39, of the shared one with 0.1 -0.03: as predicted.
- The scores of the first 20 iterations of those with a critic fall by 0.04 at most and pre-training
  removes nothing: as predicted; at iteration 20 it is behind by 0.15, at the end by 0.02.
- Seconds of an iteration: a critic of its own 1.7 times the shared trunk's (predicted: 1.4 at
  least); the group mean as long as the shared trunk (predicted: shorter), whose critic is one
  column of a product. Those of RLOO and REINFORCE, one seed of the pre-trained critic and two of
  the shared one with 0.1 were taken beside other work.
- Memory of the process, in the four seeds that found their program compiled: 916 to 917 MB with
  the shared trunk, a critic of its own 62 to 65 more, no critic 4 to 20 less; nearly all of it is
  not the 0.36 million weights'. Compiling, the first seed's took 1.5 to 1.6 GB, and what the table
  says of intervals is of all five.

Hardware: two CPU cores; 35 runs, each by itself, and SFT for each of the five seeds took 37 min of
one core.
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
