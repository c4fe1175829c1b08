"""Where the noise of leak@k comes from, and how many samples would remove it.

In: scores [prompts, samples] and the prompts' clusters; out: the variance between clusters, between prompts of one and
of the samples, and how many samples, prompts or clusters a wanted half-width takes. Knows nothing of files or models.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import numpy as np

from engine.leak.clusters import Clusters, clusters_of
from engine.leak.estimator import _BLOCK, Floats, Ints, default_k, order_weights, prompt_leak
from engine.leak.intervals import population_mean


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Standard errors of leak@k, each float64 [K]. The sum of their squares is the variance of the mean over prompts.

    sampling: what another seed would change on these very prompts; more samples shrink it. NaN at k = n.
    prompts: what other prompts about the same authors would change; more prompts shrink it. NaN with one prompt.
    clusters: what other authors would change; only more of them shrink it. 0 where every prompt stands for itself, NaN
    with a single cluster.
    """

    k: Ints
    sampling: Floats
    prompts: Floats
    clusters: Floats


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a half-width at one k costs.

    samples: samples a prompt that bring the sampling error on these prompts to the half-width; beyond the samples at
    hand it is an upper bound. prompts: prompts about as many clusters that bring the whole error to it at the samples
    at hand, 0 = unknown or not to be had so. clusters: clusters of as many prompts each that do, 0 = unknown or none
    given. sampling_now, total_now: the half-widths today.
    """

    k: int
    half_width: float
    samples: int
    prompts: int
    clusters: int
    sampling_now: float
    total_now: float


def sampling_variance(scores_PN: Floats, k_K: Ints) -> Floats:
    """The variance of each prompt's leak@k over sampling seeds: float64 [prompts, K], by the jackknife.

    scores_PN: [prompts, samples], NaN = no sample there; NaN where a prompt has no more than k valid samples.
    Leaves out one sample at a time; it errs upwards (Efron and Stein 1981), by a third at k = 128 of n = 200.
    """
    if len(scores_PN) > (prompts := max(1, _BLOCK // scores_PN.shape[1])):  # bounds memory with many prompts
        blocks = [scores_PN[start : start + prompts] for start in range(0, len(scores_PN), prompts)]
        return np.concatenate([sampling_variance(block, k_K) for block in blocks])
    ascending_PN = np.sort(scores_PN, axis=1)
    valid_P = scores_PN.shape[1] - np.isnan(ascending_PN).sum(axis=1)
    variance_PK = np.full((len(scores_PN), len(k_K)), np.nan)
    for n in map(int, np.unique(valid_P)):
        rows, columns = np.flatnonzero(valid_P == n), np.flatnonzero(k_K < n)
        if n < 2:
            continue
        ascending = ascending_PN[rows, :n]
        for column in columns:
            weights = order_weights(n - 1, k_K[column : column + 1])[0]
            # without sample i the smaller scores keep their rank and the larger ones move down by one
            smaller = np.cumsum(ascending[:, :-1] * weights, axis=1)
            larger = np.cumsum((ascending[:, 1:] * weights)[:, ::-1], axis=1)[:, ::-1]
            without = np.zeros_like(ascending)
            without[:, 1:] += smaller
            without[:, :-1] += larger
            variance_PK[rows, column] = (n - 1) * without.var(axis=1)
    return variance_PK


def sampling_half_width(scores_PN: Floats, k: int, confidence: float = 0.95) -> float:
    """Half-width, at that confidence, of the sampling error of leak@k on these prompts.

    scores_PN: [prompts, samples] in [0, 1], NaN = failed; prompts with fewer than k valid samples are left out. NaN
    where none is left or one has just k: with those it is not known.
    """
    kept_PN = scores_PN[(~np.isnan(scores_PN)).sum(axis=1) >= k]
    if not len(kept_PN):
        return float("nan")
    variance_P = sampling_variance(kept_PN, np.array([k]))[:, 0]
    return NormalDist().inv_cdf((1 + confidence) / 2) * float(np.sqrt(variance_P.mean() / len(kept_PN)))


def noise(scores_PN: Floats, k_K: Ints | None = None, clusters: Clusters | None = None) -> Noise:
    """The standard error of leak@k, split into sampling, prompts and clusters.

    scores_PN: [prompts, samples] in [0, 1], NaN = failed; every prompt must have k_K.max() valid samples or more.
    clusters: of these prompts; None: every prompt stands for itself.
    """
    k_K = default_k(scores_PN.shape[1]) if k_K is None else k_K
    clusters = clusters_of(None, len(scores_PN)) if clusters is None else clusters
    return split_noise(k_K, prompt_leak(scores_PN, k_K), sampling_variance(scores_PN, k_K), clusters)


def split_noise(k_K: Ints, leak_PK: Floats, variance_PK: Floats, clusters: Clusters) -> Noise:
    """The same from leak@k of each prompt and its variance over sampling seeds, both float64 [P, K].

    What the cluster-robust variance of the mean exceeds the one of independent prompts by is the clusters' part.
    """
    prompts, nothing = len(leak_PK), np.zeros(len(k_K))
    sampling_K = variance_PK.mean(axis=0) / prompts
    if prompts == 1:
        return Noise(k_K, np.sqrt(sampling_K), np.full(len(k_K), np.nan), nothing)
    independent_K = leak_PK.var(axis=0, ddof=1) / prompts
    total_K, clusters_K = independent_K, nothing
    if not clusters.alone:
        total_K = population_mean(leak_PK, clusters).error ** 2
        overlap = float((clusters.sizes**2).sum()) / prompts**2  # 1 / clusters, where these are of one size
        clusters_K = total_K * np.nan if clusters.count == 1 else np.maximum(total_K - independent_K, 0)
        clusters_K = clusters_K / max(1 - 1 / (prompts * overlap), 1 / prompts)
        clusters_K = np.minimum(clusters_K, total_K)
    prompts_K = np.maximum(
        np.where(np.isnan(clusters_K), independent_K, total_K - clusters_K) - np.nan_to_num(sampling_K), 0
    )
    return Noise(k_K, np.sqrt(sampling_K), np.sqrt(prompts_K), np.sqrt(clusters_K))


def plan_samples(
    scores_PN: Floats,
    k: int,
    half_width: float,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> Plan:
    """How many samples a prompt bring leak@k of these prompts to +- half_width, and how many prompts or clusters a
    population's.

    scores_PN: pilot scores [prompts, samples] in [0, 1], NaN = failed, with more than k valid samples of each prompt.
    Fewer samples than the pilot's are tried on a random part of it; for more, n * Var(n) never grows with n for a
    U-statistic (Hoeffding 1948), so scaling today's variance by 1 / n gives an upper bound.
    Raises ValueError where half_width is not positive, a prompt has k valid samples or fewer, or nothing varies.
    """
    valid = int((~np.isnan(scores_PN)).sum(axis=1).min())
    if half_width <= 0:
        raise ValueError(f"half-width must be positive, found {half_width}")
    if valid <= k:
        raise ValueError(f"planning at k = {k} needs more than {k} valid samples of every prompt, found {valid}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    clusters = clusters_of(None, len(scores_PN)) if clusters is None else clusters
    order = np.argsort(np.random.default_rng(seed).random(scores_PN.shape) + 2 * np.isnan(scores_PN), axis=1)
    shuffled_PN = np.take_along_axis(scores_PN, order, axis=1)[:, :valid]
    samples, now = _samples_for(shuffled_PN, k, half_width, confidence)
    errors = noise(shuffled_PN, np.array([k]), clusters)
    within, between = float(np.hypot(errors.sampling[0], errors.prompts[0])), float(errors.clusters[0])
    total = float(np.hypot(within, between))
    return Plan(
        k=k,
        half_width=half_width,
        samples=samples,
        prompts=_units_for(len(scores_PN), within, (half_width / z) ** 2 - between**2),
        clusters=0 if clusters.alone else _units_for(clusters.count, total, (half_width / z) ** 2),
        sampling_now=now,
        total_now=z * total,
    )


def _samples_for(shuffled_PN: Floats, k: int, half_width: float, confidence: float) -> tuple[int, float]:
    """Samples a prompt that bring the sampling error to +- half_width, and its half-width today. The samples stand in
    random order."""
    valid = shuffled_PN.shape[1]
    now = sampling_half_width(shuffled_PN, k, confidence)
    if now == 0:
        raise ValueError("every prompt's samples score the same: they say nothing about noise, take more of them first")
    if now > half_width:
        return int(np.ceil(valid * (now / half_width) ** 2)), now
    low, high = k, valid  # low: not enough (or too few to tell), high: enough
    while high - low > 1:
        middle = (low + high) // 2
        enough = sampling_half_width(shuffled_PN[:, :middle], k, confidence) <= half_width
        low, high = (low, middle) if enough else (middle, high)
    return high, now


def _units_for(units: int, error: float, variance: float) -> int:
    """How many units bring an error that shrinks with their square root to that variance; 0 = unknown, or no number."""
    return int(np.ceil(units * error**2 / variance)) if variance > 0 and not np.isnan(error) else 0
