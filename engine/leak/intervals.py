"""Confidence intervals for a mean over prompts, by resampling prompts.

In: one value a prompt and column, [prompts, columns]; out: lower and upper ends for each column's mean.
Knows nothing of leak@k; prompts are taken as drawn independently from a population of prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

INTERVALS = ("bounded", "percentile", "bca")
_BLOCK = 2**22  # weights held at once
_SAME = 1e-12  # prompts whose values differ by no more score the same


def mean_interval(
    values: Floats,
    confidence: float = 0.95,
    seed: int = 0,
    interval: str = "bounded",
    resamples: int = 10_000,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[Floats, Floats]:
    """Two-sided confidence interval for the mean of each column.

    values: [prompts, columns], within `bounds`. Returns (low, high), each [columns].
    "bounded": random Dirichlet weights over the prompts and half an unseen prompt, which scores the worst possible: the
    upper bound for the upper end, the lower bound for the lower end. With a whole unseen prompt (Gaffke 2005;
    Learned-Miller, Thomas, arXiv 1905.06208) binary values give the Clopper-Pearson interval, which covers too often;
    half of one is its mid-P form and covers nearest to nominal. A whole one is used where every prompt scores the same.
    "percentile" and "bca" (bias-corrected and accelerated): Efron and Tibshirani 1993, chapters 13 and 14. They have no
    width where every prompt scores the same, so such columns get the bounded interval.
    Raises ValueError for an unknown interval.
    """
    if interval not in INTERVALS:
        raise ValueError(f"interval must be one of {', '.join(INTERVALS)}, found {interval!r}")
    rng = np.random.default_rng(seed)
    low, high = _bounded(values, confidence, rng, resamples, bounds)
    if interval == "bounded":
        return low, high
    varies = np.ptp(values, axis=0) > _SAME
    varying = values[:, varies]
    means = np.concatenate([shares @ varying for shares in _prompt_shares(rng, resamples, len(values))])
    ends = _percentile(means, confidence) if interval == "percentile" else _bca(means, varying, confidence)
    low[varies], high[varies] = ends
    return low, high


def _prompt_shares(rng: np.random.Generator, resamples: int, prompts: int) -> Iterator[Floats]:
    """Blocks of [resamples, prompts]: the share of each prompt in a resample of equal size with replacement."""
    for rows in _blocks(resamples, prompts):
        drawn = rng.integers(prompts, size=(rows, prompts)) + prompts * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * prompts).reshape(rows, prompts) / prompts


def _blocks(resamples: int, prompts: int) -> Iterator[int]:
    size = max(1, _BLOCK // prompts)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _bounded(
    values: Floats, confidence: float, rng: np.random.Generator, resamples: int, bounds: tuple[float, float]
) -> tuple[Floats, Floats]:
    prompts = len(values)
    same = np.ptp(values, axis=0) <= _SAME
    lower, upper = [], []
    for rows in _blocks(resamples, prompts):
        weights = rng.standard_exponential((rows, prompts))
        half, other_half = rng.standard_gamma(0.5, (2, rows, 1))
        unseen = half + other_half * same
        total = weights.sum(axis=1, keepdims=True) + unseen
        seen = weights @ values
        lower.append((seen + unseen * bounds[0]) / total)
        upper.append((seen + unseen * bounds[1]) / total)
    tail = (1 - confidence) / 2
    low = np.quantile(np.concatenate(lower), tail, axis=0)
    high = np.quantile(np.concatenate(upper), 1 - tail, axis=0)
    return np.clip(low, *bounds), np.clip(high, *bounds)


def _percentile(means: Floats, confidence: float) -> tuple[Floats, Floats]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _bca(means: Floats, values: Floats, confidence: float) -> tuple[Floats, Floats]:
    """The percentiles moved for the median bias z0 and for the acceleration a, a sixth of the mean's skewness."""
    normal = NormalDist()
    centre = values.mean(axis=0)
    below = (means < centre).mean(axis=0) + (means == centre).mean(axis=0) / 2
    bias = [normal.inv_cdf(share) for share in np.clip(below, 1 / len(means), 1 - 1 / len(means))]
    away = values - centre
    acceleration = (away**3).sum(axis=0) / (6 * (away**2).sum(axis=0) ** 1.5)
    tail_z = normal.inv_cdf((1 - confidence) / 2)
    ends = np.empty((2, values.shape[1]))
    for column, (z0, a) in enumerate(zip(bias, acceleration, strict=True)):
        for end, z in enumerate((tail_z, -tail_z)):
            share = normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
            ends[end, column] = np.quantile(means[:, column], share)
    return ends[0], ends[1]
