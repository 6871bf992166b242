"""Whether a critic that has learnt first lets lambda be smaller: sums, right or wrong.

    ppo-jax sweep value_pretraining --vmap
    ppo-jax report value_pretraining

Question: a lambda below 1 trusts the critic; does it lose less with a critic of its own that learns
alone for the first 20 of 200 iterations?

Published: VC-PPO (arXiv 2503.01491): a critic that starts from another model is biased, which with
lambda 0.95 reaches the policy, and pre-training it is what makes PPO work where responses are long;
with it goes a lambda of 1 for the critic and a smaller one for the policy (VAPO, arXiv 2504.05118,
chooses it by length). Lambda is one number here, of critic and policy alike: the decoupled one is
left out.

Prediction, before any run: over the 4 tokens of a response 0.95 leaves 0.86 of the reward at the
first, so 0.95 and 1 do not differ, with or without pre-training. 0.5, which leaves 0.13, is the
lowest without it; pre-training makes up more than half of what 0.5 lacks to 1. With 1 it changes
nothing but for its 20 iterations. It fails if 0.5 without pre-training is not the lowest, or if
pre-training does not raise the sums of 0.5 by more than the interval.

Hardware: two CPU cores; 18 runs of about 1.5 minutes, and SFT of 40 s for each of the three seeds,
by estimate. Not yet run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)
BASE = replace(BASE, **{"model.critic": "separate"})

GRID = {"ppo.critic_warmup": (0, 20), "hparams.lam": (1.0, 0.95, 0.5)}
SEEDS = range(3)
METRICS = ("eval/scores", "objective/scores", "value/explained_variance")
