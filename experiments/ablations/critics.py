"""Where the baseline comes from: a head on the policy's trunk, a model of its own, or no critic.

    ppo-jax sweep critics               (each run by itself: seconds and memory are its own)
    ppo-jax report critics

Question: what does a critic buy in sums, and what does it cost in seconds and memory? Shared trunk
with the value loss weighed 0.5 or 0.1; a critic of its own that starts as a copy of the policy; the
same that learns alone for 20 of the 200 iterations; RLOO and the group mean, 4 samples of each of
64 prompts in place of 256 prompts; REINFORCE with the batch's mean.

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

Hardware: two CPU cores; 35 runs of 1 to 1.5 minutes, and SFT of 40 s for each of the five seeds, by
estimate. Not yet run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)  # shared trunk, value loss weighed 0.5

GROUPS = {"rollout.samples_per_prompt": 4}
RUNS = {
    "shared,vf=0.5": {},
    "shared,vf=0.1": {"hparams.vf_coef": 0.1},
    "separate": {"model.critic": "separate"},
    "separate,pretrained": {"model.critic": "separate", "ppo.critic_warmup": 20},
    "rloo": {"ppo.advantage": "rloo", **GROUPS},
    "group_mean": {"ppo.advantage": "group_mean", **GROUPS},
    "reinforce": {"ppo.advantage": "reinforce"},
}
SEEDS = range(5)
METRICS = (
    "eval/scores",
    "objective/scores",
    "value/explained_variance",  # of those with a critic
    "time/iteration",
    "memory/peak_bytes",  # of the process
)
