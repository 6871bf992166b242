"""Which language a response is in, on the host."""

import functools
from collections.abc import Callable
from typing import Any

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.rewards.checks import need_package, rows


def language(code: str | None = None) -> Callable[..., list[float]]:
    """Reward: probability, 0 to 1, that the response is in a language (ISO 639-1: `en`, `de`).

    The language is `code`, or where that is None the column `language`. By py3langid, langid
    (Lui and Baldwin 2012) kept up: naive Bayes over byte n-grams, normalised over all languages it
    knows. Without a known n-gram, as in an empty response, all are alike likely; code, names and
    a few words tell little. Raises ConfigError without the package and for a code that it does not
    know; the reward raises DataError at a row whose `language` it does not know.
    """
    need_package("language", "py3langid", "rewards")
    if code is not None and code not in _identifier().labels:
        raise ConfigError(f"reward language: {_unknown(code, _identifier().labels)}")

    def chance(response: str, wanted: Any) -> float:
        known = _identifier().labels
        if wanted not in known:
            raise DataError(f"column language: {_unknown(wanted, known)}")
        return min(dict(_identifier().rank(response))[wanted], 1.0)

    def of_column(prompts: list, responses: list[str], language: list) -> list[float]:
        return [chance(*row) for row in rows(responses, language=language)]

    def of_code(prompts: list, responses: list[str]) -> list[float]:
        return [chance(response, code) for (response,) in rows(responses)]

    reward = of_column if code is None else of_code
    reward.__name__ = "language"
    return reward


def _unknown(code: Any, known: list[str]) -> str:
    return f"{str(code)[:20]!r} is not known; expected one of {', '.join(sorted(known))}"


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # pyright: ignore

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
