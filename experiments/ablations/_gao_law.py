"""A law of over-optimisation and where a gain turns, from points of runs: d, proxy's and true gain.

d is the square root of the KL to the first policy, in nats. The forms are those of Gao et al. 2022
(arXiv 2210.10760, section 3.1): d (alpha - beta log d) of RL, d (alpha - beta d) of best of n.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

ALMOST_NONE = 0.1  # d below which log d says nothing of the law
STEP = 0.25  # of d, of a mean over seeds
WINDOW = 5  # evaluations in a mean


class Points(NamedTuple):
    """Of one run: gains over the first policy."""

    d_N: np.ndarray
    proxy_N: np.ndarray
    gold_N: np.ndarray


class Law(NamedTuple):
    """gain(d) = d (alpha - beta f(d))."""

    alpha: float
    beta: float
    r2: float
    f: Callable

    def gain(self, d_N: np.ndarray) -> np.ndarray:
        return d_N * (self.alpha - self.beta * self.f(d_N))

    @property
    def turn(self) -> float:
        """d at which the gain of the law of RL is largest; inf of a gain that only rises."""
        if self.beta <= 0:
            return np.inf
        return float(np.exp(min(self.alpha / self.beta - 1, 700.0)))


def fit(d_N: np.ndarray, gain_N: np.ndarray, f: Callable) -> Law:
    """By least squares; R2 against the mean of the gains."""
    basis_N2 = np.stack([d_N, -d_N * f(d_N)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(basis_N2, gain_N, rcond=None)
    law = Law(float(alpha), float(beta), 0.0, f)
    left = np.sum((gain_N - law.gain(d_N)) ** 2)
    return law._replace(r2=float(1 - left / np.sum((gain_N - gain_N.mean()) ** 2)))


class Size(NamedTuple):
    """All that there is of the runs with one size of reward model."""

    label: str  # of the variant
    accuracies: list[float]  # of the reward models, on held-out pairs
    runs: list[Points]
    best: list[tuple[np.ndarray, np.ndarray]]

    @property
    def reach(self) -> float:
        """The d that every run has reached."""
        return min(float(run.d_N.max()) for run in self.runs)

    def law(self) -> Law:
        return law_of_means(means_by_step(self.runs, self.reach))

    def laws_of_each(self) -> list[Law]:
        """Through all evaluations of one run, that of each."""
        far = [(run, run.d_N > ALMOST_NONE) for run in self.runs]
        return [fit(run.d_N[kept], run.gold_N[kept], np.log) for run, kept in far]

    def resampled(self) -> list[Law]:
        """The laws of all ways to draw as many seeds with replacement."""
        of_each_R2S = means_by_step(self.runs, self.reach)
        draws = itertools.product(range(len(self.runs)), repeat=len(self.runs))
        return [law_of_means(of_each_R2S[list(draw)]) for draw in draws]

    def law_of_best(self) -> Law | None:
        if not self.best:
            return None
        d_N, gain_N = (np.concatenate([pair[i] for pair in self.best]) for i in (0, 1))
        return fit(d_N, gain_N, lambda d_N: d_N)


def law_of_means(of_each_R2S: np.ndarray) -> Law:
    """Of the mean over runs in each step of d: one that stays at some d counts there no more than
    one that goes on."""
    met_S = ~np.isnan(of_each_R2S).all(axis=(0, 1))
    d_M, gain_M = np.nanmean(of_each_R2S[:, :, met_S], axis=0)
    return fit(d_M, gain_M, np.log)


def means_by_step(runs: Sequence[Points], reach: float) -> np.ndarray:
    """(runs, 2, steps): mean d and mean gain of each run from one STEP of d on to the next, up to
    d = `reach`; NaN where it has none."""
    steps = np.arange(ALMOST_NONE, reach, STEP)
    return np.array([mean_by_step(run, steps, reach) for run in runs])


def mean_by_step(run: Points, steps: np.ndarray, reach: float) -> np.ndarray:
    within = (run.d_N >= ALMOST_NONE) & (run.d_N <= reach)
    step_N = np.digitize(run.d_N[within], steps) - 1
    count = np.bincount(step_N, minlength=len(steps))
    sums = [np.bincount(step_N, x_N[within], len(steps)) for x_N in (run.d_N, run.gold_N)]
    return np.where(count > 0, np.array(sums) / np.maximum(count, 1), np.nan)


class Turn(NamedTuple):
    """Where the gain of one run, by the mean of WINDOW evaluations, was largest."""

    d: float
    gain: float
    end: float  # gain at its end


def turn_of(run: Points) -> Turn:
    """The last mean is no turn: there d is inf."""
    mean = lambda x_N: np.convolve(x_N, np.full(WINDOW, 1 / WINDOW), mode="valid")
    d_M, gain_M = mean(run.d_N), mean(run.gold_N)
    top = int(gain_M.argmax())
    d = np.inf if top == len(gain_M) - 1 else float(d_M[top])
    return Turn(d, float(gain_M[top]), float(gain_M[-1]))


def rise(points: Points) -> tuple[float, float]:
    """(Spearman's rank correlation of the proxy with d, its largest fall behind what it had
    reached as a share of all that it gained) over the evaluations, from the nearest on; NaN of a
    proxy that is always the same."""
    order = np.argsort(points.d_N, kind="stable")
    proxy_N = points.proxy_N[order]
    if np.ptp(proxy_N) == 0:
        return np.nan, np.nan
    rho = float(stats.spearmanr(points.d_N, points.proxy_N).statistic)
    fall = float(np.max(np.maximum.accumulate(proxy_N) - proxy_N))
    return rho, fall / float(np.ptp(proxy_N))
