"""Confidence intervals and p-values for a mean over prompts and for the difference of two: one law gives both.

In: one value a prompt and column in [0, 1], [prompts, columns], with the prompts' clusters or each value's sampling
variance; out: a Mean or a Difference, which knows its ends at any confidence and, a Difference, its p-value. Knows
nothing of leak@k.

Two inferences. "population": for prompts like these; clusters (authors, articles) are taken as drawn from a population
of clusters, and prompts of one cluster may be alike in any way. "prompts": for these very prompts; all that could have
been otherwise is their samples.

The law of a mean. Its standard error is the cluster-robust one with the correction CR2 (Bell and McCaffrey 2002), with
Student's t at Satterthwaite's degrees of freedom. The estimate and its standard error are not independent: where no
author with many leaks was drawn both are too small. So the interval holds the values m that the estimate is within t
standard errors of, each error taken as large as it would be at m: as m (1 - m) to a power, which makes intervals longer
towards the middle, as Wilson's are. Where an interval that assumes nothing but independent clusters (Hoeffding's
inequality in its KL form) is narrower, the ends are its. The ends of a difference are those of its two means, squared
and added (Zou and Donner 2008), moved out to the paired t interval's where that is wider. perf/coverage.py measures how
often they cover; the powers were chosen on such simulations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.leak.clusters import Clusters
from engine.leak.estimator import Floats, Ints

Bools = NDArray[np.bool_]

INFERENCES = ("population", "prompts")
_SAME = 1e-12  # errors below this are rounding: the values are all the same
_STEPS = 34  # of a bisection: ends are exact to 1e-10
_SMALLEST_P = 1e-9  # what is less likely is stated as this
_P_STEPS = 14  # of a bisection over shares of misses: p-values are exact to a tenth of a percent
# The power of m (1 - m) that the error grows with, for the end above a mean near 0 and near 1; mirrored for the end
# below. Clusters differ by factors, so that few of them leak most; samples of one prompt are coin flips (a half).
_POPULATION_POWER = (1.1, 0.5)
_SAMPLING_POWER = (0.5, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
    """A mean over prompts of values in [0, 1].

    value, error: float64 [K], the estimate and its standard error, NaN or 0 where that is not known. degrees: of
    freedom of the error. units: how many independent values, at least, the mean is of, one number or float64 [K].
    power: of m (1 - m) that the error grows with, for the end above a mean at 0 and at 1. curve: so many columns, one
    after the other, are means that never fall from one to the next, as leak@k does with k: what is below one of them is
    below all that follow, so that their ends do not fall either.
    """

    value: Floats
    error: Floats
    degrees: float
    units: float | Floats
    power: tuple[float, float]
    curve: int = 1
    reach = (0.0, 1.0)

    def ends(self, tail: float | Floats) -> tuple[Floats, Floats]:
        """The ends (low, high) of the interval that misses in a share of `tail`, a float or [A, 1]: [K] or [A, K]."""
        distance = _student(self.degrees, tail) * self.error
        low, high = 1 - self._upper(1 - self.value, distance, tail), self._upper(self.value, distance, tail)
        if self.curve == 1:
            return low, high
        by_curve = (*low.shape[:-1], -1, self.curve)
        low, high = low.reshape(by_curve), high.reshape(by_curve)[..., ::-1]
        rising = np.fmax.accumulate(low, axis=-1), np.fmin.accumulate(high, axis=-1)[..., ::-1]
        return rising[0].reshape(distance.shape), rising[1].reshape(distance.shape)

    def _upper(self, mean: Floats, distance: Floats, tail: float | Floats) -> Floats:
        """The upper end of the interval of a mean; that of 1 - mean is one minus the lower end."""
        near_0, near_1 = self.power
        power = near_0 + (near_1 - near_0) * mean
        known = distance > _SAME
        spread = mean * (1 - mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(known & (spread > 0), distance / spread**power, np.inf)

            def inside(m: Floats) -> Bools:
                return np.asarray(m - mean <= scale * (m * (1 - m)) ** power)

            end = np.where(np.isfinite(scale), _last(inside, mean, scale.shape), 1.0)
        return _within_hoeffding(end, mean, self.units, np.asarray(tail) / 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """first minus second, on the same prompts. correlation: float64 [K], of their estimates. error, degrees: the
    standard error of the difference, taken prompt by prompt, and its degrees of freedom."""

    first: Mean | Difference
    second: Mean | Difference
    correlation: Floats
    error: Floats
    degrees: float

    @property
    def value(self) -> Floats:
        return np.asarray(self.first.value - self.second.value)

    @property
    def curve(self) -> int:
        """As Mean's."""
        return self.first.curve

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the most that it can be."""
        return self.first.reach[0] - self.second.reach[1], self.first.reach[1] - self.second.reach[0]

    def ends(self, tail: float | Floats) -> tuple[Floats, Floats]:
        """As Mean.ends. What the two estimates share moves both of them up or both down, what they do not share moves
        one up or the other down; these ways are independent, so their squares add."""
        first_low, first_high = self.first.ends(tail)
        second_low, second_high = self.second.ends(tail)
        first_down, first_up = self.first.value - first_low, first_high - self.first.value
        second_down, second_up = self.second.value - second_low, second_high - self.second.value
        up = self._added(first_up, second_down, first_down, second_up)
        down = self._added(first_down, second_up, first_up, second_down)
        paired = np.nan_to_num(_student(self.degrees, tail) * self.error)
        low = np.maximum(self.value - np.maximum(down, paired), self.reach[0])
        high = np.minimum(self.value + np.maximum(up, paired), self.reach[1])
        return low, high

    def _added(self, towards: Floats, other_away: Floats, away: Floats, other_towards: Floats) -> Floats:
        """How far the difference's end is from it. towards, away: of the first mean's ends, the one that moves the
        difference this way and the other; other_away: the second's that moves it this way, too."""
        shared = np.abs(self.correlation)
        together = np.maximum(np.maximum(towards - other_towards, other_away - away), 0)
        common = np.where(self.correlation > 0, together, towards + other_away)
        return np.asarray(np.sqrt(shared * common**2 + (1 - shared) * (towards**2 + other_away**2)))

    def p_value(self, confidence: float) -> Floats:
        """Two-sided p-value of "there is no difference": float64 [K], the smallest share of misses whose interval
        leaves 0 out. It is 1 - confidence or less exactly where the interval at `confidence` leaves 0 out."""
        least, stated = np.full(self.value.shape, _SMALLEST_P), np.full(self.value.shape, 1 - confidence)
        outside = self._leaves_out_zero(stated)
        low, high = np.where(outside, least, stated), np.where(outside, stated, 1.0)
        for _ in range(_P_STEPS):
            middle = np.sqrt(low * high)
            # ends of one column depend on the others of its curve: a row for each place in curves, at that one's share
            shares = np.repeat(middle.reshape(-1, self.curve).T, self.curve, axis=1)
            rows = self._leaves_out_zero(shares).reshape(self.curve, -1, self.curve)
            outside = np.diagonal(rows, axis1=0, axis2=2).ravel()
            low, high = np.where(outside, low, middle), np.where(outside, middle, high)
        return np.where(self._leaves_out_zero(least), least, high)

    def _leaves_out_zero(self, tail: Floats) -> Bools:
        low, high = self.ends(tail)
        return np.asarray((low > 0) | (high < 0))


def population_mean(values_PK: Floats, clusters: Clusters, curve: int = 1) -> Mean:
    """The mean over prompts, as an estimate for a population of clusters. values_PK: [prompts, K] in [0, 1]. curve: as
    Mean's.

    Where all prompts of all clusters have one value (nothing leaked), clusters are not seen to differ, and prompts are
    taken as independent: else six authors without a leak would allow that half of all authors leak.
    """
    error, degrees = _cluster_error(values_PK, clusters)
    units = np.where(error <= _SAME, len(values_PK), len(values_PK) / int(clusters.sizes.max()))
    return Mean(values_PK.mean(axis=0), error, degrees, units, _POPULATION_POWER, curve)


def population_difference(first_PK: Floats, second_PK: Floats, clusters: Clusters, curve: int = 1) -> Difference:
    """The difference of two means over the same prompts, for a population of clusters. curve: as Mean's, of both."""
    first, second = population_mean(first_PK, clusters, curve), population_mean(second_PK, clusters, curve)
    return contrast(first, second, first_PK, second_PK, clusters)


def contrast(
    first: Mean | Difference, second: Mean | Difference, first_PK: Floats, second_PK: Floats, clusters: Clusters
) -> Difference:
    """first minus second where these are means over the values first_PK and second_PK, or differences of such means."""
    error, degrees = _cluster_error(first_PK - second_PK, clusters)
    return Difference(first, second, _correlation(first_PK, second_PK, clusters), error, degrees)


def sampling_mean(values_PK: Floats, variance_PK: Floats, blocks_K: Ints, curve: int = 1) -> Mean:
    """The mean over prompts, as an estimate for these very prompts. variance_PK: of each value over sampling seeds, NaN
    where it is not known. blocks_K: into how many groups of k a prompt's samples part, samples // k: what Hoeffding's
    inequality takes such a value to be the mean of (Hoeffding 1963, section 5). curve: as Mean's."""
    mean, error = values_PK.mean(axis=0), np.nan_to_num(np.sqrt(variance_PK.sum(axis=0)) / len(values_PK))
    return Mean(mean, error, np.inf, len(values_PK) * blocks_K.astype(float), _SAMPLING_POWER, curve)


def sampling_difference(first: Mean, second: Mean) -> Difference:
    """The difference of two means whose samples are independent."""
    error = np.hypot(first.error, second.error)
    return Difference(first, second, np.zeros(len(error)), error, np.inf)


def hoeffding_bound(mean: Floats, units: float | Floats, tail: float | Floats) -> Floats:
    """The largest m that a mean of `units` independent values in [0, 1] is not surely below: P(mean <= x) is at most
    exp(-units * KL(x, m)) (Hoeffding 1963, theorem 1), here `tail`. mean, units: [K]; tail: float or [A, 1]."""
    allowed = -np.log(tail) / units
    return _last(lambda m: _binary_kl(mean, m) <= allowed, mean, np.broadcast_shapes(mean.shape, np.shape(allowed)))


def _within_hoeffding(end: Floats, mean: Floats, units: float | Floats, tail: Floats) -> Floats:
    """The smaller of `end` and hoeffding_bound, which is only looked for where it is the smaller."""
    mean, units, tail = (np.broadcast_to(each, end.shape) for each in (mean, units, tail))
    beyond = _binary_kl(mean, end) > -np.log(tail) / units
    found = end.copy()
    found[beyond] = hoeffding_bound(mean[beyond], units[beyond], tail[beyond])
    return found


def _binary_kl(p: Floats, q: Floats) -> Floats:
    from scipy.special import rel_entr

    return np.asarray(rel_entr(p, q) + rel_entr(1 - p, 1 - q))


def _last(inside: Callable[[Floats], Bools], start: Floats, shape: tuple[int, ...]) -> Floats:
    """The last m in start..1 that is inside, by bisection: start is, and what follows one that is not is not."""
    low, high = np.broadcast_to(start, shape), np.ones(shape)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        kept = inside(middle)
        low, high = np.where(kept, middle, low), np.where(kept, high, middle)
    return np.asarray(high)


def _student(degrees: float, tail: float | Floats) -> Floats:
    """Two-sided quantiles of Student's t, of the normal law at infinite degrees; NaN without degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    upper = 1 - np.asarray(tail) / 2
    return np.asarray(ndtri(upper) if np.isinf(degrees) else stdtrit(degrees, upper))


def _scores(values_PK: Floats, clusters: Clusters) -> Floats:
    """What each cluster adds to the error of the mean, with CR2's correction: float64 [clusters, K]."""
    weight = clusters.sizes / len(values_PK)
    away = clusters.sums(values_PK - values_PK.mean(axis=0)) / len(values_PK)
    return np.asarray(away / np.sqrt(1 - weight)[:, None])


def _cluster_error(values_PK: Floats, clusters: Clusters) -> tuple[Floats, float]:
    """The standard error of the mean over prompts, [K], and its degrees of freedom; NaN with a single cluster."""
    if clusters.count == 1:
        return np.full(values_PK.shape[1], np.nan), np.nan
    return np.sqrt((_scores(values_PK, clusters) ** 2).sum(axis=0)), _degrees(clusters.sizes / len(values_PK))


def _degrees(weight: Floats) -> float:
    """Satterthwaite's degrees of freedom of the error where prompts are independent (Bell and McCaffrey 2002).

    count - 1 for clusters of one size, fewer where few hold most prompts. weight: each cluster's share of the prompts.

    tr(B)^2 / tr(B^2) with B the covariance of the clusters' scores, w_g ([g = h] - w_h) / sqrt((1 - w_g) (1 - w_h)),
    whose sums separate, so that nothing of size clusters^2 is made. Working with prompts of one cluster alike instead
    gives fewer degrees and intervals up to twice as wide, which cover too often (perf/coverage.py).
    """
    share = weight**2 / (1 - weight)
    return float(1 / ((weight**2).sum() - (share**2).sum() + share.sum() ** 2))


def _correlation(first_PK: Floats, second_PK: Floats, clusters: Clusters) -> Floats:
    """Of two means over the same prompts: [K]. No two are taken to be quite alike: their difference has an error."""
    if clusters.count == 1:
        return np.zeros(first_PK.shape[1])
    first, second = _scores(first_PK, clusters), _scores(second_PK, clusters)
    norm = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    found = np.divide((first * second).sum(axis=0), norm, out=np.zeros(len(norm)), where=norm > _SAME**2)
    most = 1 - 0.5 / len(first_PK)
    return np.clip(found, -most, most)
