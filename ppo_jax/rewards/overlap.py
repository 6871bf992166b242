"""How much a response has in common with references, on the host, from 0 to 1.

Each reward takes the column `reference`: a string, or a list of strings a row. A row without one
raises DataError. Nothing is downloaded.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.checks import need_choice, need_package, rows, texts

# sacrebleu's tokenizers that need no further package and no download; `zh` is for Chinese.
BLEU_TOKENS = ("13a", "intl", "char", "zh", "none")
MAX_WORDS = 1024  # of a text that ROUGE-L reads: its time is their product
WORD = re.compile("[a-z0-9]+")  # as rouge-score has it, in lower case
Measure = Callable[[str, list[str]], float]  # (response, references) -> 0 to 1


def rouge_l(*, stem: bool = False) -> Callable[..., list[float]]:
    """Reward: F1 of ROUGE-L (Lin 2004) as the package rouge-score has it, the best reference's.

    Words are runs of ASCII letters and digits, so other scripts score 0; `stem` takes off English
    endings. The time grows with words of the response times words of the reference, so the first
    `MAX_WORDS` of each are read: at most about a quarter of a second a pair.
    """
    need_package("rouge_l", "rouge_score", "rewards")
    _need_bool("rouge_l", "stem", stem)
    scorer = functools.cache(lambda: _rouge(stem))

    def rouge_l(prompts: list, responses: list[str], reference: list) -> list[float]:
        score = lambda text, some: scorer().score_multi(some, text)["rougeL"].fmeasure
        measure = lambda text, some: score(first_words(text), [first_words(one) for one in some])
        return _scores(measure, responses, reference)

    return rouge_l


def bleu(*, tokens: str = "13a", lowercase: bool = False) -> Callable[..., list[float]]:
    """Reward: BLEU of a sentence / 100 (Papineni et al. 2002; sacrebleu, Post 2018).

    n-grams up to 4, or up to the length of a shorter response (`effective_order`), no match
    smoothed exponentially; all references count together. `tokens` is one of `BLEU_TOKENS`.
    """
    need_package("bleu", "sacrebleu", "rewards")
    need_choice("bleu", "tokens", tokens, BLEU_TOKENS)
    _need_bool("bleu", "lowercase", lowercase)
    metric = functools.cache(lambda: _bleu(tokens, lowercase))

    def bleu(prompts: list, responses: list[str], reference: list) -> list[float]:
        return _scores(_of_hundred(metric), responses, reference)

    return bleu


def chrf(*, word_order: int = 0, lowercase: bool = False) -> Callable[..., list[float]]:
    """Reward: chrF of a sentence / 100 (Popović 2015), the best reference's; any script.

    Characters up to 6-grams, recall twice the weight of precision; `word_order=2` is chrF++
    (Popović 2017).
    """
    need_package("chrf", "sacrebleu", "rewards")
    if isinstance(word_order, bool) or word_order not in range(10):
        raise ConfigError(f"reward chrf: word_order is {word_order!r}; expected 0 to 9")
    _need_bool("chrf", "lowercase", lowercase)
    metric = functools.cache(lambda: _chrf(word_order, lowercase))

    def chrf(prompts: list, responses: list[str], reference: list) -> list[float]:
        return _scores(_of_hundred(metric), responses, reference)

    return chrf


def first_words(text: str) -> str:
    """The words of a text that ROUGE-L reads, in lower case, a space between them."""
    found = itertools.islice(WORD.finditer(text.lower()), MAX_WORDS)
    return " ".join(match[0] for match in found)


def _scores(measure: Measure, responses: Sequence[str], reference: Sequence) -> list[float]:
    pairs = rows(responses, reference=reference)
    # Rounding may lead a hair beyond 1.
    return [min(float(measure(text, texts("reference", some))), 1.0) for text, some in pairs]


def _of_hundred(metric: Callable[[], Any]) -> Measure:
    return lambda text, some: metric().sentence_score(text, some).score / 100


# The packages are imported where a reward is called: it takes a second, and the run itself never
# needs them.


def _rouge(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore

    return RougeScorer(["rougeL"], use_stemmer=stem)


def _bleu(tokens: str, lowercase: bool) -> Any:
    from sacrebleu.metrics.bleu import BLEU  # pyright: ignore

    return BLEU(tokenize=tokens, lowercase=lowercase, effective_order=True)


def _chrf(word_order: int, lowercase: bool) -> Any:
    from sacrebleu.metrics.chrf import CHRF  # pyright: ignore

    return CHRF(word_order=word_order, lowercase=lowercase)


def _need_bool(reward: str, option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"reward {reward}: {option} is {value!r}; expected True or False")
