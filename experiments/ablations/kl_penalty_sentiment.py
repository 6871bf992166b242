"""The KL penalty where the reward is not the aim: positive words, and VADER's own compound score.

    ppo-jax sweep kl_penalty_sentiment
    ppo-jax report kl_penalty_sentiment

Question: does a policy without a penalty score highest by the reward, the sum of VADER's words, and
less by the compound score, the judge, which knows negation and emphasis? It is of continuations of
260 openings that no run has learnt from.

Published: Gao et al. 2022 (arXiv 2210.10760): the score that is trained on rises all the way while
the true one turns over; a KL penalty raises the former at a given KL and does not move the true
score's curve over KL, so it acts as stopping early does. Secrets of RLHF (arXiv 2307.04964):
without it the reward alone looks healthy while the policy cheats.

Prediction, before any run: the KL at the end falls strictly from beta 0 to 0.05 to 0.2, and so does
the reward. In 38 iterations the compound score does not turn over yet: it falls in the same order,
and distinct-2 rises in it. It fails if beta 0 does not have the largest KL and reward, or if 0.05
has the larger compound score: then the turn is within reach of a run this short. The points of
all three, compound score over KL, lie on one curve: at a KL that two of them pass, their scores are
within 0.05 of each other.

Seen, three seeds (experiments/results/kl_penalty_sentiment): of beta 0, 0.05 and 0.2 the compound
score of the held-out openings at the end is 0.96, 0.50 and 0.21, from 0.15, at 28.6, 3.1 and 0.7
nats, and distinct-2 0.60, 0.89 and 0.90: as predicted, and so is the order of the KL and of the
reward. The two scores are alike to 0.03 throughout: negation is rare in these continuations, so the
judge is hardly another aim than the reward, and 38 iterations of it do not turn anything over. One
curve they are up to 1 nat. At 2 nats, read between evaluations, 0.05 has 0.37 and 0 has 0.32, at 3
nats 0.48 and 0.38, against the prediction: going slowly buys more for a nat. Gao et al. see that of
the score that is trained on, not of the true one; here they are one. That beta 0 cheats is to be
read, not measured: of its pairs of words two in five repeat another, and a monitor "was playing a
fantastic game in Alice's great amazing park".

Hardware: two CPU cores and 10 GB of memory; 9 runs, each by itself (--vmap would hold the moments
of nine models at once), about 16 minutes each on one core, with other work on the other.
"""

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("sentiment")
BASE = replace(
    PARENT.base,
    **{"reward.kl_controller": "fixed", "hparams.kl_target": None, "run.eval_every": 10},
)


def compound(prompts: list, responses: list[str]) -> list[float]:
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in responses]


JUDGE = compound

GRID = {"hparams.kl_coef": (0.0, 0.05, 0.2)}
SEEDS = range(3)
METRICS = ("objective/scores", "objective/kl", "eval/judge", "eval/kl", "eval/distinct_2")
