"""VADER's own sentiment of a response, on the host; `lexicon.sentiment` is the device's."""

import functools
from collections.abc import Callable
from typing import Any

from ppo_jax.rewards.checks import need_package, rows


def compound() -> Callable[..., list[float]]:
    """Reward: VADER's compound score, from -1 to 1 (Hutto and Gilbert, ICWSM 2014).

    With its rules for negation, emphasis, "but" and emoticons; English. Its time grows with the
    square of the words, as it looks each one up among the others. Raises ConfigError without the
    package vaderSentiment.
    """
    need_package("compound", "vaderSentiment", "sentiment")
    analyzer = functools.cache(_analyzer)

    def compound(prompts: list, responses: list[str]) -> list[float]:
        return [analyzer().polarity_scores(text)["compound"] for (text,) in rows(responses)]

    return compound


def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
