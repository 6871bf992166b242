"""What whitening does at rewards of three sizes: sums, right or wrong.

    ppo-jax sweep whitening --vmap
    ppo-jax report whitening

Question: does a policy whose advantages are whitened care less how large its rewards are? A right
sum earns 10 here, and `score_clip` makes that 10, 1 or 0.1: of a score that is 0 or 10, a clip is a
scale. `eval/exact_match` is the share of right sums all the same. The rewards of tokens may be
whitened, too, their mean kept; the last two runs have a KL penalty, to see what that does to it.

Published: Xu et al. 2024 (arXiv 2404.10719) count the normalisation of advantages among the three
things that PPO on language models stands on. The final runs of the N+ details (Huang et al. 2024,
arXiv 2403.17031) do not whiten rewards. Andrychowicz et al. 2020 (arXiv 2006.05990) are said to
find a small effect in control.

Prediction, before any run: at scale 1 whitened or not makes no difference in held-out sums; at 0.1
neither, since Adam undoes the scale of a gradient. At 10 both lose sums: on the shared trunk the
critic's loss grows with the square of the scale, with whitening a hundredfold beside the policy's,
without it tenfold, so that whitening, which is to make the scale harmless, loses more. Whitened
rewards have as many sums right as scale 1, and with the penalty the same KL as without within the
intervals: score and penalty are divided by one number. It fails if whitening makes a difference at
scale 1, if scale 10 loses nothing, or if whitened rewards move the KL by more than the interval.
On a trunk that the critic shares, its loss stands beside the policy's, so that the scale of the
advantages is not all that varies. With a critic of its own it is: then whitened advantages have as
many sums right at 10 as at 1, to 0.05, and advantages that are not whitened too, by Adam.
Added when whitened rewards had been seen to lose sums on the shared trunk, before they were run
with a critic of its own: if its loss is why, they lose none there, to 0.05, and the KL is the same,
with the penalty, within the interval.

Seen: held-out sums right at scale 1 and 0.1, whitened 0.943 and 0.947, not 0.956 and 0.930: no
difference, as predicted. At 10, on the shared trunk, 0.19 whitened and 0.67 not; with a critic of
its own 0.96 and 0.94, beside 0.93 and 0.97 at scale 1: all as predicted. Against it, whitened
rewards have fewer right: 0.58 (0.11, 0.64, 0.98; their difference to scale 1 is -0.78 to +0.02),
and with the penalty 0.85 beside 0.89, less in each seed, and the KL is lower in each, by 0.32 (0.16
to 0.49). A reward of 1 or 0 at one token in four has a standard deviation of 0.26 to 0.43 where 0.3
to 0.95 are right: whitened it is 2 to 4 times as large, which lies between 1 and 10. The advantages
are whitened after that all the same; what grows is the critic's loss, on the trunk that it shares.
With a critic of its own, as predicted, they lose none: 0.907 beside 0.927 (-0.06 to +0.02), with
the penalty 0.872 and 0.872, at 4.48 and 4.44 nats (-0.17 to +0.27). experiments/results/whitening.

Hardware: two CPU cores; 48 runs in six programs took 41 min with other work on the cores, SFT
having been run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment
from ppo_jax.rewards.exact import exact_match

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)
REWARD = [(10.0, exact_match("answer"))]

ONE, PENALTY = {"hparams.score_clip": 1.0}, {"hparams.kl_coef": 0.05}
REWARDS = {"reward.whiten_rewards": True}
RUNS = {
    f"{name},scale={scale:g}": {"ppo.whiten_advantages": on, "hparams.score_clip": scale}
    for name, on in (("advantages", True), ("nothing", False))
    for scale in (1.0, 0.1, 10.0)
} | {
    "rewards,scale=1": {**ONE, **REWARDS},
    "advantages,scale=1,beta=0.05": {**ONE, **PENALTY},
    "rewards,scale=1,beta=0.05": {**ONE, **PENALTY, **REWARDS},
}
OWN = {"model.critic": "separate"}
RUNS |= {
    f"{name},scale={scale:g},separate": {
        "ppo.whiten_advantages": on,
        "hparams.score_clip": scale,
        **OWN,
    }
    for name, on in (("advantages", True), ("nothing", False))
    for scale in (1.0, 10.0)
} | {
    "rewards,scale=1,separate": {**ONE, **REWARDS, **OWN},
    "advantages,scale=1,beta=0.05,separate": {**ONE, **PENALTY, **OWN},
    "rewards,scale=1,beta=0.05,separate": {**ONE, **PENALTY, **REWARDS, **OWN},
}
PAIRS = [
    ("rewards,scale=1,beta=0.05", "advantages,scale=1,beta=0.05"),
    ("advantages,scale=10,separate", "advantages,scale=1,separate"),
    ("nothing,scale=10,separate", "nothing,scale=1,separate"),
    ("rewards,scale=1,separate", "advantages,scale=1,separate"),
    ("rewards,scale=1,beta=0.05,separate", "advantages,scale=1,beta=0.05,separate"),
]
SEEDS = range(3)
METRICS = ("eval/exact_match", "reward/exact_match", "objective/kl", "value/explained_variance")
