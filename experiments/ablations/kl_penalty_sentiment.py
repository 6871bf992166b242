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

Hardware: two CPU cores and 10 GB of memory, 9 runs of about 9 minutes, each by itself (--vmap would
hold the moments of nine models at once). Not yet run.
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
