"""What seeds say together: one number a run, means and differences with 95 % intervals.

Intervals are percentiles of the bootstrap over seeds (Efron 1979): of all resamples of a few seeds,
of draws with a fixed key of more, so that the same logs give the same digits. Of few seeds they are
too narrow: of normal numbers those of three seeds, which are their lowest and highest number, hold
the true mean in about 75 % of the cases, those of five in 84 %, of ten in 90 %, of twenty in 93 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

EVAL = "eval/"  # of held-out rows: such numbers are there at some iterations alone
KEY = 0
ALL_OF = 6  # seeds, and fewer: all of their n^n resamples are taken
RESAMPLES = 10_000  # drawn of more
BAND_RESAMPLES = 1_000  # of each point of a curve
PERCENTS = (2.5, 97.5)

Window = float | tuple[int, int]  # the last share of the iterations, or those from one to another


class Interval(NamedTuple):
    """A mean over `n` seeds; NaN ends of one seed or none."""

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """A mean minus the base's; `n` pairs of seeds, or the fewer seeds of the two if unpaired."""

    mean: float
    low: float
    high: float
    n: int
    paired: bool


def rule(metric: str, window: Window) -> str:
    """Which number of a run stands for it, in words."""
    if isinstance(window, tuple):
        return f"mean of iterations {window[0]} to {window[1] - 1}"
    if metric.startswith(EVAL):
        return "last evaluation"
    return f"mean of the last {100 * window:.4g} % of the iterations"


def number_of(rows: Sequence[Mapping[str, Any]], metric: str, window: Window) -> float:
    """The number that stands for a run: a metric's mean over the iterations of its window; without
    one of its own a held-out metric's last value, any other's mean over the last `window` (0 to 1)
    of the rows that have it, at least one. NaN where none has it or where one of them is no finite
    number."""
    found = values_in(rows, metric, window)
    finite = found and all(map(math.isfinite, found))
    return math.fsum(found) / len(found) if finite else math.nan


def values_in(rows: Sequence[Mapping[str, Any]], metric: str, window: Window) -> list[float]:
    """The values whose mean stands for a run."""
    if isinstance(window, tuple):
        rows = [row for row in rows if window[0] <= row["step"] < window[1]]
    found = [as_number(row[metric]) for row in rows if metric in row]
    if isinstance(window, tuple):
        return found
    last = 1 if metric.startswith(EVAL) else max(1, math.ceil(window * len(found) - 1e-9))
    return found[-last:]


def as_number(value: Any) -> float:
    """A metric as a float; NaN for what is no number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan


def mean_interval(values_N: Sequence[float]) -> Interval:
    """The mean of finite numbers, one a seed, with its interval."""
    values = np.asarray(values_N, np.float64)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    means = _all_means(values) if n <= ALL_OF else _means(np.random.default_rng(KEY), values)
    return Interval(mean, *_ends(means), n)


def difference(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Of the means of two variants {seed: finite number}: of the pairs where at least two seeds are
    in both, else of seeds drawn apart."""
    both = sorted(ours.keys() & base.keys())
    if len(both) >= 2 or (len(both) == len(ours) == len(base)):
        return Difference(*mean_interval([ours[seed] - base[seed] for seed in both]), paired=True)
    mine, theirs = (np.asarray(list(x.values()), np.float64) for x in (ours, base))
    n = min(len(mine), len(theirs))
    mean = float(mine.mean() - theirs.mean()) if n else math.nan
    if n < 2:
        return Difference(mean, math.nan, math.nan, n, paired=False)
    rng = np.random.default_rng(KEY)
    ends = _ends(_means(rng, mine) - _means(rng, theirs))
    return Difference(mean, *ends, n, paired=False)


def bands(values_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean_T, low_T, high_T) over N seeds of curves of T points: intervals point by point; one
    seed's are the curve itself. A point that is NaN for one of them is NaN."""
    values_NT = np.asarray(values_NT, np.float64)
    n, mean_T = len(values_NT), values_NT.mean(axis=0)
    if n < 2:
        return mean_T, mean_T, mean_T
    counts_RN = np.random.default_rng(KEY).multinomial(n, [1 / n] * n, size=BAND_RESAMPLES)
    low_T, high_T = np.percentile(counts_RN @ values_NT / n, PERCENTS, axis=0)
    return mean_T, low_T, high_T


def _all_means(values_N: np.ndarray) -> np.ndarray:
    """Means of all ways to draw as many values with replacement."""
    n = len(values_N)
    return values_N[np.indices((n,) * n).reshape(n, -1)].mean(axis=0)


def _means(rng: np.random.Generator, values_N: np.ndarray) -> np.ndarray:
    """Means [RESAMPLES] of as many values, drawn from them with replacement."""
    n = len(values_N)
    return rng.multinomial(n, [1 / n] * n, size=RESAMPLES) @ values_N / n


def _ends(means_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means_R, PERCENTS, method="inverted_cdf")
    return float(low), float(high)
