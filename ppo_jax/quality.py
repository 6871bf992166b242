"""How good responses are, from their texts and scores: pass@k, diversity, wins, and how sure it is.

Pure functions of the host. A number has its unit in the prompt: samples of one prompt hang
together, so every interval is over prompts. Words are what stands between white space, whatever
the model's tokens are, so that models of different tokenizers compare.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ppo_jax.errors import ConfigError
from ppo_jax.text import install_hint

Z = 1.959963984540054  # of 95 % of a normal distribution
RESAMPLES = 2000
CHUNK = 1 << 21  # draws of the bootstrap at once
SELF_BLEU_TEXTS = 100


class PerPrompt(NamedTuple):
    """A number over prompts: the sum of `sums_P` over that of `counts_P`, NaN where a prompt has
    none."""

    sums_P: np.ndarray
    counts_P: np.ndarray  # 1 a prompt for a mean over prompts, its tokens for one over tokens
    share: bool = False  # every prompt's is between 0 and 1
    log: bool = False  # the number is the exponential of that

    @property
    def known(self) -> "PerPrompt":
        """Of the prompts that have one."""
        here_P = np.isfinite(self.sums_P) & np.isfinite(self.counts_P)
        return self._replace(sums_P=self.sums_P[here_P], counts_P=self.counts_P[here_P])


class Estimate(NamedTuple):
    """A number with the 95 % interval of what it would be over all such prompts."""

    value: float
    low: float
    high: float
    prompts: int


def mean(values_P: np.ndarray, *, share: bool = False) -> PerPrompt:
    """The mean of a number a prompt."""
    values_P = np.asarray(values_P, np.float64)
    return PerPrompt(values_P, np.ones_like(values_P), share)


def mean_of_samples(values_PK: np.ndarray) -> PerPrompt:
    """The mean over prompts of their samples' mean; a share where every number is 0 or 1."""
    return mean(mean_known(values_PK), share=are_passes(values_PK))


def are_passes(values: np.ndarray) -> bool:
    """Whether every number that is finite is 0 or 1, and there is one."""
    known = values[np.isfinite(values)]
    return known.size > 0 and bool(np.isin(known, (0.0, 1.0)).all())


def value(number: PerPrompt) -> float:
    """The number itself; NaN where no prompt has one."""
    known = number.known
    total = known.counts_P.sum()
    ratio = float(known.sums_P.sum() / total) if total > 0 else math.nan
    return _exp(ratio) if number.log else ratio


def estimate(number: PerPrompt, *, seed: int = 0) -> Estimate:
    """With its interval: Wilson's for a share, which stays sound at 0 and 1 and with few prompts;
    else the bootstrap's over prompts (percentiles), the same for the same seed."""
    known = number.known
    prompts, found = len(known.sums_P), value(number)
    low, high = wilson(found, prompts) if number.share else _bootstrap(known, seed)
    if number.log:
        low, high = _exp(low), _exp(high)
    return Estimate(found, low, high, prompts)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a mean of `count` independent numbers between 0 and 1 (Wilson 1927).

    It is Wilson's of a proportion. Numbers in between, as a tie of one half, vary less than a
    proportion of the same mean, so that for them it is rather too wide than too narrow.
    """
    if count == 0 or math.isnan(share):
        return math.nan, math.nan
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = math.sqrt(max(share * (1 - share), 0.0) / count + Z**2 / (4 * count**2))
    half *= Z / (1 + Z**2 / count)
    # At the ends they meet 0 and 1 but for rounding.
    return middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0


def _bootstrap(known: PerPrompt, seed: int) -> tuple[float, float]:
    """Percentiles of the ratio over prompts drawn with replacement (Efron 1979)."""
    prompts = len(known.sums_P)
    if prompts < 2:
        return math.nan, math.nan
    rng, ratios = np.random.default_rng(seed), []
    size = max(1, CHUNK // prompts)
    for start in range(0, RESAMPLES, size):
        drawn = rng.integers(prompts, size=(min(size, RESAMPLES - start), prompts))
        sums, counts = known.sums_P[drawn].sum(axis=1), known.counts_P[drawn].sum(axis=1)
        ratios.append(sums / np.maximum(counts, 1e-12))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def mean_known(values_PK: np.ndarray) -> np.ndarray:
    """Mean over the samples of each prompt that are finite; NaN where none is."""
    here_PK = np.isfinite(values_PK)
    count_P = here_PK.sum(axis=1)
    sum_P = np.where(here_PK, values_PK, 0.0).sum(axis=1)
    return np.where(count_P > 0, sum_P / np.maximum(count_P, 1), np.nan)


def best_known(values_PK: np.ndarray) -> np.ndarray:
    """The best sample of each prompt; NaN where none is finite."""
    best_P = np.where(np.isfinite(values_PK), values_PK, -np.inf).max(axis=1)
    return np.where(np.isfinite(best_P), best_P, np.nan)


def pass_at_k(scores_PK: np.ndarray, k: int, *, threshold: float) -> np.ndarray:
    """Of each prompt the probability that one of k samples scores `threshold` or more, unbiased:
    1 − C(n − c, k) / C(n, k) with c of its n samples (Chen et al. 2021, arXiv 2107.03374).

    n are those that have a score; NaN where they are fewer than k.
    """
    n_P = np.isfinite(scores_PK).sum(axis=1)
    wrong_P = n_P - (np.nan_to_num(scores_PK, nan=-np.inf) >= threshold).sum(axis=1)
    # C(w, k) / C(n, k) as a product of k ratios, which neither overflows nor rounds away.
    i_K = np.arange(k)
    ratios_PK = np.maximum(wrong_P[:, None] - i_K, 0) / np.maximum(n_P[:, None] - i_K, 1)
    return np.where(n_P >= k, 1.0 - ratios_PK.prod(axis=1), np.nan)


def wins(ours_PK: np.ndarray, theirs_PK: np.ndarray) -> np.ndarray:
    """Of each prompt the share of pairs, one of ours and one of theirs, that ours wins by score, a
    tie being half a win; NaN where either side has no score. The numbers of samples may differ."""
    ours, theirs = ours_PK[:, :, None], theirs_PK[:, None, :]
    won = np.where(ours == theirs, 0.5, (ours > theirs).astype(np.float64))
    pairs = np.where(np.isfinite(ours) & np.isfinite(theirs), won, np.nan)
    return mean_known(pairs.reshape(len(pairs), -1))


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n: different n-grams of words over all n-grams of all texts together (Li et al.
    2016, arXiv 1510.03055). It falls with the number of texts: compare equally many. NaN where
    there is no n-gram."""
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def _ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def self_bleu(texts: list[str], *, limit: int = SELF_BLEU_TEXTS, seed: int = 0) -> float:
    """Self-BLEU, 0 (all differ) to 1 (all alike): mean BLEU of a text with the others as its
    references (Zhu et al. 2018, arXiv 1802.01886; sacrebleu's sentence BLEU of up to 4-grams).

    Of `limit` texts drawn by the seed, since it rises with their number. Texts without a word have
    none, and are no references; NaN where fewer than two others are left. Raises ConfigError where
    sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU  # pyright: ignore
    except ImportError:
        hint = install_hint("sacrebleu", "rewards")
        raise ConfigError(f"self-BLEU needs the package sacrebleu: {hint}") from None
    drawn = sorted(np.random.default_rng(seed).permutation(len(texts))[:limit].tolist())
    some: list[str] = [texts[i] for i in drawn if texts[i].split()]
    if len(some) < 2:
        return math.nan
    metric = BLEU(effective_order=True)
    others = lambda i: [*some[:i], *some[i + 1 :]]
    scores = [metric.sentence_score(text, others(i)).score for i, text in enumerate(some)]
    return min(math.fsum(scores) / len(scores) / 100, 1.0)
