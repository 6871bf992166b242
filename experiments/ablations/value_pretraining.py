"""Whether a critic that has learnt first lets lambda be smaller: sums, right or wrong.

    ppo-jax sweep value_pretraining --vmap
    ppo-jax report value_pretraining

Question: a lambda below 1 trusts the critic; does it lose less with a critic of its own that learns
alone for the first 20 of 200 iterations? And with returns for the critic that have a lambda of
their own, 1?

Published: VC-PPO (arXiv 2503.01491): a critic that starts from another model is biased, which with
lambda 0.95 reaches the policy, and pre-training it is what makes PPO work where responses are long;
with it goes a lambda of 1 for the critic and a smaller one for the policy (VAPO, arXiv 2504.05118,
chooses it by length): `hparams.critic_lam`.

Prediction, before any run: over the 4 tokens of a response 0.95 leaves 0.86 of the reward at the
first, so 0.95 and 1 do not differ, with or without pre-training. 0.5, which leaves 0.13, is the
lowest without it; pre-training makes up more than half of what 0.5 lacks to 1. With 1 it changes
nothing but for its 20 iterations. A critic with a lambda of 1 of its own learns from what it
estimates, not from itself: 0.5 gains by it, pre-trained or not, and 0.95 does not. It fails if 0.5
without either is not the lowest, or if pre-training does not raise the sums of 0.5 by more than the
interval, or if 0.5 with a critic's own lambda is below 0.5 without one.

Seen, three seeds (experiments/results/value_pretraining): of the held-out sums 0.927, 0.961 and
0.897 right with lambda 1, 0.95 and 0.5: 1 and 0.95 are alike, as predicted. All three ways to fail
have come about. 0.5 loses 0.03 (-0.09 to 0.00) where it loses 0.46 on a shared trunk
(`gae_lambda`): a critic of its own is itself what lets lambda be small. Pre-trained 0.5 gains 0.04
(-0.03 to +0.08), 1 gains 0.01 and 0.95 loses 0.02: no difference. With returns of lambda 1 for the
critic 0.5 is lower in each seed, 0.873, and 0.95 the same, 0.968, where pre-training costs 0.03
(0.02 to 0.05). What differs is how soon: at iteration 50 1 has 0.67 right, 0.5 0.50, with the
critic's own lambda 0.43. 4 tokens are no long response, of which VC-PPO speaks.

Hardware: two CPU cores; 30 runs in four programs took 28 min with other work on the cores, SFT
having been run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)
BASE = replace(BASE, **{"model.critic": "separate"})

RUNS = {
    f"lam={lam}{own}{trained}": {
        "hparams.lam": lam,
        "hparams.critic_lam": 1.0 if own else None,
        "ppo.critic_warmup": 20 if trained else 0,
    }
    for lam in (1.0, 0.95, 0.5)
    for own in ("", ",critic_lam=1")
    for trained in ("", ",pretrained")
    if not (own and lam == 1.0)
}
PAIRS = [(f"{name},pretrained", name) for name in RUNS if f"{name},pretrained" in RUNS]
PAIRS += [(f"lam={lam},critic_lam=1", f"lam={lam}") for lam in (0.95, 0.5)]
SEEDS = range(3)
METRICS = ("eval/scores", "objective/scores", "value/explained_variance")
