"""leak@k for k beyond the samples at hand, by a named model: there is no unbiased estimate of it.

In: counts of leaking samples; out: leak@k under a zero-inflated beta-binomial fitted by maximum likelihood, with
intervals and a test of fit. Each prompt never leaks with probability `never`, else leaks with a probability of its own
from Beta(a, b). Knows nothing of scores' meaning: graded scores must be made binary first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.clusters import Clusters, clusters_of
from engine.leak.estimator import Floats, Ints, valid_samples

REFITS = 200


@dataclasses.dataclass(frozen=True)
class LeakModel:
    """Zero-inflated beta distribution of prompts' probabilities to leak. never in [0, 1]; a, b > 0."""

    never: float
    a: float
    b: float

    def leak_at_k(self, k: Ints) -> Floats:
        """(1 - never) (1 - B(a, b + k) / B(a, b)), at any k: float64 of the shape of k."""
        from scipy.special import betaln

        missed = betaln(self.a, self.b + np.asarray(k, dtype=np.float64)) - betaln(self.a, self.b)
        return np.asarray((1 - self.never) * -np.expm1(missed))

    def chances(self, points: int = 128) -> Floats:
        """Equally likely probabilities to leak that stand for the distribution: float64 [points]."""
        from scipy.special import betaincinv

        share = (np.arange(points) + 0.5) / points
        return np.asarray(betaincinv(self.a, self.b, np.maximum(share - self.never, 0) / max(1 - self.never, 1e-12)))


@dataclasses.dataclass(frozen=True, eq=False)
class BeyondN:
    """leak@k by the fitted model, each float64 [K]; fit_p_value: of the fit, None with too few prompts to test it.

    warning: why not to trust it, or None. The interval is the percentile bootstrap over clusters of prompts, within
    the model.
    """

    k: Ints
    leak: Floats
    low: Floats
    high: Floats
    model: LeakModel
    fit_p_value: float | None
    warning: str | None


def fit_leak_model(
    leaks: Ints, samples: Ints, weights: Floats | None = None, start: LeakModel | None = None
) -> LeakModel:
    """Maximum likelihood of the zero-inflated beta-binomial for counts of leaking samples.

    leaks, samples: int64 [P]. weights: how often each prompt counts, once where not given.
    Raises ValueError where no sample leaks: there is nothing to fit, see engine.leak.bounds for what can be said.
    """
    from scipy.optimize import minimize

    if not leaks.any():
        raise ValueError("no sample leaks: nothing to fit a model to; use the upper bound instead")
    pairs, inverse = np.unique(np.stack([leaks, samples]), axis=1, return_inverse=True)
    counts = np.bincount(inverse.ravel(), weights=weights)

    def loss(parameters: Floats) -> float:
        return -float(counts @ _log_likelihood(_model(parameters), pairs[0], pairs[1]))

    bounds = [(-12, 12), (-8, 8), (-8, 8)]
    starts = [_parameters(start)] if start else [np.array([x, y, z]) for x in (-3, 0) for y, z in ((-1, 0), (0, 3))]
    fits = [minimize(loss, begin, method="L-BFGS-B", bounds=bounds) for begin in starts]
    return _model(min(fits, key=lambda fit: fit.fun).x)


def leak_beyond_n(
    scores_PN: Floats, k: Ints, confidence: float = 0.95, seed: int = 0, clusters: Clusters | None = None
) -> BeyondN:
    """leak@k at any k under the model.

    scores_PN: [prompts, samples], 0 or 1, NaN = failed. clusters: of these prompts; None: every prompt stands for
    itself. Raises ValueError for graded scores and where nothing leaks.
    """
    valid = ~np.isnan(scores_PN)
    if not np.isin(scores_PN[valid], (0.0, 1.0)).all():
        raise ValueError("the model is of binary scores: say first which scores are leaks, such as score >= 0.5")
    scored = valid_samples(scores_PN) > 0
    leaks, samples = np.nansum(scores_PN[scored], axis=1).astype(int), valid[scored].sum(axis=1)
    model = fit_leak_model(leaks, samples)
    k = np.atleast_1d(np.asarray(k))
    rng = np.random.default_rng(seed)
    refitted = []
    clusters = (clusters or clusters_of(None, len(scored))).part(scored)
    for drawn in rng.multinomial(clusters.count, np.full(clusters.count, 1 / clusters.count), size=REFITS):
        weights = drawn[clusters.of_prompt].astype(float)
        leaking = weights @ leaks > 0
        refitted.append(fit_leak_model(leaks, samples, weights, model).leak_at_k(k) if leaking else np.zeros(len(k)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(refitted, [tail, 1 - tail], axis=0)
    p_value = fit_p_value(model, leaks, samples)
    return BeyondN(k, model.leak_at_k(k), low, high, model, p_value, _warning(p_value))


def fit_p_value(model: LeakModel, leaks: Ints, samples: Ints) -> float | None:
    """Chi-squared test of the counts against the model, neighbouring counts merged to five expected prompts or more."""
    from scipy.stats import chi2

    largest = int(samples.max())
    count = np.arange(largest + 1)
    sizes, prompts = np.unique(samples, return_counts=True)
    expected = np.zeros(largest + 1)
    for size, number in zip(sizes, prompts, strict=True):
        expected[: size + 1] += number * np.exp(_log_likelihood(model, count[: size + 1], np.full(size + 1, size)))
    observed = np.bincount(leaks, minlength=largest + 1)
    bins = _bins(expected)
    freedom = bins.max() + 1 - 1 - 3
    if freedom < 1:
        return None
    merged, seen = np.bincount(bins, expected), np.bincount(bins, observed)
    return float(chi2.sf(((seen - merged) ** 2 / merged).sum(), freedom))


def _bins(expected: Floats) -> Ints:
    """The bin of each count, closed whenever five prompts are expected in it; a smaller rest joins the last bin."""
    bins, current, filled = np.zeros(len(expected), dtype=np.int64), 0, 0.0
    for count, here in enumerate(expected):
        bins[count] = current
        filled += here
        if filled >= 5:
            current, filled = current + 1, 0.0
    return np.minimum(bins, max(current - 1, 0))


def _warning(p_value: float | None) -> str | None:
    if p_value is None:
        return "too few prompts to test the fit"
    return f"the model does not fit (p = {p_value:.2g}): do not trust it beyond n" if p_value < 0.05 else None


def _parameters(model: LeakModel) -> Floats:
    never = np.clip(model.never, 1e-5, 1 - 1e-5)
    return np.array([np.log(never / (1 - never)), np.log(model.a), np.log(model.b)])


def _model(parameters: Floats) -> LeakModel:
    return LeakModel(
        float(1 / (1 + np.exp(-parameters[0]))), float(np.exp(parameters[1])), float(np.exp(parameters[2]))
    )


def _log_likelihood(model: LeakModel, leaks: Ints, samples: Ints) -> Floats:
    from scipy.special import betaln

    choices = -betaln(leaks + 1, samples - leaks + 1) - np.log1p(samples)
    some = choices + betaln(leaks + model.a, samples - leaks + model.b) - betaln(model.a, model.b)
    some = np.log1p(-min(model.never, 1 - 1e-12)) + some
    return np.asarray(np.where(leaks == 0, np.logaddexp(np.log(max(model.never, 1e-300)), some), some))
