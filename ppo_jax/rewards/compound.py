"""VADER's own sentiment of a response, on the host; `lexicon.sentiment` is the device's."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ppo_jax.rewards.checks import need_package, rows

MAX_WORDS = 1024  # of a response that are read: VADER looks each one up among the others


def compound() -> Callable[..., list[float]]:
    """Reward: VADER's compound score, from -1 to 1 (Hutto and Gilbert, ICWSM 2014).

    With its rules for negation, emphasis, "but" and emoticons; English. Its time grows with the
    square of the words, so the first `MAX_WORDS` are read, what is between blanks counting as one
    and an emoji as those that VADER reads for it: at most about a quarter of a second a response.
    Raises ConfigError without the package vaderSentiment.
    """
    need_package("compound", "vaderSentiment", "sentiment")
    analyzer = functools.cache(_analyzer)

    def compound(prompts: list, responses: list[str]) -> list[float]:
        read = lambda text: first_words(text, analyzer().emojis)
        score = lambda text: analyzer().polarity_scores(read(text))["compound"]
        return [score(text) for (text,) in rows(responses)]

    return compound


def first_words(text: str, emojis: Mapping[str, str]) -> str:
    """A text up to its last word that is read; `emojis` has the words of each."""
    count, inside = 0, False
    for place, character in enumerate(text):
        begins = not inside and not character.isspace()
        inside = not character.isspace()
        words = emojis.get(character, " ").split()
        count += len(words) or begins
        if count > MAX_WORDS:
            return text[:place]
    return text


def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
