"""VADER's own compound score, which is not the reward, on a run's sampled continuations.

    .venv/bin/python experiments/_sentiment_judge.py runs/sentiment/base/seed*

For each run: compound score and distinct-2 over the first and the last five iterations, and the KL
over the last third.
"""

import sys
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ppo_jax.metrics import read_metrics, read_samples

COUNT = 5  # iterations at either end


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def distinct_2(texts: list[str]) -> float:
    """Share of different pairs of neighbouring words among all of them."""
    pairs = [p for words in map(str.split, texts) for p in zip(words, words[1:], strict=False)]
    return len(set(pairs)) / len(pairs)


def judge(run: Path) -> str:
    analyzer = SentimentIntensityAnalyzer()
    metrics, samples = read_metrics(run / "metrics.jsonl"), read_samples(run / "samples.jsonl")
    steps = [row["step"] for row in metrics]
    ends = [
        [row["response"] for row in samples if row["step"] in part]
        for part in (steps[:COUNT], steps[-COUNT:])
    ]
    compound = [mean(analyzer.polarity_scores(t)["compound"] for t in texts) for texts in ends]
    distinct = [distinct_2(texts) for texts in ends]
    kl = [row["objective/kl"] for row in metrics]
    coefs = [row["objective/kl_coef"] for row in metrics]
    return (
        f"{run}: compound {compound[0]:.3f} -> {compound[1]:.3f} "
        f"({compound[1] - compound[0]:+.3f}), distinct-2 {distinct[0]:.3f} -> {distinct[1]:.3f}, "
        f"KL last third {mean(kl[-len(kl) // 3 :]):.2f}, last {COUNT} {mean(kl[-COUNT:]):.2f}, "
        f"kl_coef {min(coefs):.3f} to {max(coefs):.3f}"
    )


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(judge(Path(folder)))
