"""Losses of a reward model, and how well its scores tell what was preferred."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.types import Array

BINS = 10  # of confidences from 0.5 to 1, for the calibration error


def pairwise_sums(scores_B: Array, margins_N: Array, counts_N: Array) -> dict[str, Array]:
    """Over N pairs, B = 2N with the chosen response of each before its rejected one, the sums of
    `loss` = -log σ(gap - margin), gap = r_chosen - r_rejected (Bradley and Terry 1952; the margin:
    Touvron et al. 2023, arXiv 2307.09288, eq. 2), of `accuracy`, of equal scores one half, and of
    the `gap` itself. `counts_N` is 1, or 0 for a pair that is not there.
    """
    pairs_N2 = scores_B.reshape(-1, 2)
    gap_N = pairs_N2[:, 0] - pairs_N2[:, 1]
    right_N = jnp.where(gap_N == 0, 0.5, (gap_N > 0).astype(jnp.float32))
    of = {"loss": jax.nn.softplus(margins_N - gap_N), "accuracy": right_N, "gap": gap_N}
    return {name: jnp.sum(x_N * counts_N) for name, x_N in of.items()}


def scored_sums(scores_B: Array, targets_N: Array, counts_N: Array) -> dict[str, Array]:
    """Over N = B responses that have a score, the sums of `loss`, the squared error, and of
    `error`, the absolute one."""
    error_N = scores_B - targets_N
    of = {"loss": error_N**2, "error": jnp.abs(error_N)}
    return {name: jnp.sum(x_N * counts_N) for name, x_N in of.items()}


def judge_pairs(scores_B: np.ndarray, margins_N: np.ndarray) -> dict[str, float]:
    """What scores of held-out pairs are worth, in float64.

    `loss`; `accuracy`, of equal scores one half; `gap`, the mean of chosen less rejected; `brier`,
    the mean of (1 - σ(gap))²; `ece`, the expected calibration error (Guo et al. 2017, arXiv
    1706.04599): confidences σ(|gap|) in `BINS` bins of equal width from 0.5 to 1, and of each its
    distance to the bin's accuracy, weighted by its share of the pairs.
    """
    pairs_N2 = scores_B.astype(np.float64).reshape(-1, 2)
    gap_N = pairs_N2[:, 0] - pairs_N2[:, 1]
    if not np.all(np.isfinite(gap_N)):  # of diverged weights
        return dict.fromkeys(("loss", "accuracy", "gap", "brier", "ece"), math.nan)
    right_N = np.where(gap_N == 0, 0.5, gap_N > 0)
    sure_N = _sigmoid(np.abs(gap_N))
    bin_N = np.minimum((2 * BINS * (sure_N - 0.5)).astype(int), BINS - 1)
    off = np.abs(np.bincount(bin_N, right_N - sure_N, minlength=BINS))
    return {
        "loss": float(np.mean(np.logaddexp(0.0, margins_N - gap_N))),
        "accuracy": float(right_N.mean()),
        "gap": float(gap_N.mean()),
        "brier": float(np.mean((1.0 - _sigmoid(gap_N)) ** 2)),
        "ece": float(off.sum() / len(gap_N)),
    }


def judge_scores(scores_B: np.ndarray, targets_N: np.ndarray) -> dict[str, float]:
    """What predicted scores of held-out responses are worth, in float64: `loss`, `error` (mean
    absolute), and `correlation` (Pearson; 0 where one side is constant)."""
    scores_N, targets_N = scores_B.astype(np.float64), targets_N.astype(np.float64)
    error_N = scores_N - targets_N
    spread = scores_N.std() * targets_N.std()
    together = np.mean((scores_N - scores_N.mean()) * (targets_N - targets_N.mean()))
    return {
        "loss": float(np.mean(error_N**2)),
        "error": float(np.mean(np.abs(error_N))),
        "correlation": float(together / spread) if spread > 0 else 0.0,
    }


def _sigmoid(x_N: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x_N))
