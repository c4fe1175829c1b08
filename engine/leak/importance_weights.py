"""leak@k of another model, or under another decoding, from samples that are there already: importance weights.

In: scores of samples and the log-probability of each under what drew it and under what is wanted; out: leak@k and how
far it can be trusted. Knows nothing of models; engine.decode.logprobs.answer_log_probs gives the log-probabilities
by one teacher-forced pass, far cheaper than sampling.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.clusters import Clusters, clusters_of
from engine.leak.estimator import Floats, Ints
from engine.leak.intervals import population_mean

WEIGHT_ERROR = 0.1  # the mean weight is 1 when the samples reach everything that is wanted
SHARE_OF_PROMPTS = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class ReweightedLeak:
    """leak@k by importance weights. leak, low, high: float64 [K]. effective_samples: float64 [P], (sum w)^2 / sum w^2.

    mean_weight: over all samples, 1 when valid. warning: why it is not valid at the largest k, or None. values: float64
    [P, K], of each prompt.
    """

    k: Ints
    leak: Floats
    low: Floats
    high: Floats
    effective_samples: Floats
    mean_weight: float
    warning: str | None
    values: Floats


def reweighted_leak(
    scores_PN: Floats,
    log_drawn_PN: Floats,
    log_wanted_PN: Floats,
    k: Ints,
    confidence: float = 0.95,
    clusters: Clusters | None = None,
) -> ReweightedLeak:
    """leak@k of what gives the samples log-probability `log_wanted`, from samples of what gives them `log_drawn`.

    scores_PN: [prompts, samples] in [0, 1]; log_*_PN: natural logarithms, of the whole sample, -inf = impossible there.
    leak@k(x) = integral over t of 1 - (1 - G(t))^k with G(t) the weighted share of scores above t, unbiased itself; the
    curve bends, so leak@k errs downwards by about k^2 Var(G) / 2. Valid where everything wanted could have been drawn
    (any wanted decoding if drawn at top_p = 1) and the weights are even: at least k effective samples for 9 prompts of
    10 and a mean weight within 0.1 of 1; else `.warning` says which fails.
    """
    k = np.atleast_1d(np.asarray(k))
    leak_PK, weights_PN = reweighted_values(scores_PN, log_drawn_PN, log_wanted_PN, k)
    squares_P = (weights_PN**2).sum(axis=1)
    effective_P = np.divide(weights_PN.sum(axis=1) ** 2, squares_P, out=np.zeros(len(squares_P)), where=squares_P > 0)
    clusters = clusters_of(None, len(leak_PK)) if clusters is None else clusters
    low, high = population_mean(np.clip(leak_PK, 0, 1), clusters).ends(1 - confidence)
    mean_weight = float(weights_PN.mean())
    warning = _warning(effective_P, mean_weight, int(k.max()))
    return ReweightedLeak(k, leak_PK.mean(axis=0), low, high, effective_P, mean_weight, warning, leak_PK)


def reweighted_values(scores_PN: Floats, log_drawn_PN: Floats, log_wanted_PN: Floats, k: Ints) -> tuple[Floats, Floats]:
    """leak@k of each prompt, float64 [prompts, K], and the weight of each sample; arguments as reweighted_leak."""
    if not (scores_PN.shape == log_drawn_PN.shape == log_wanted_PN.shape):
        raise ValueError(f"shapes differ: {scores_PN.shape}, {log_drawn_PN.shape}, {log_wanted_PN.shape}")
    if np.isnan(scores_PN).any() or not np.isfinite(log_drawn_PN).all() or np.isnan(log_wanted_PN).any():
        raise ValueError("scores must be numbers and drawn samples must have a finite log-probability")
    weights_PN = np.exp(log_wanted_PN - log_drawn_PN)
    order = np.argsort(-scores_PN, axis=1)
    descending_PN = np.take_along_axis(scores_PN, order, axis=1)
    above_PN = np.minimum(np.take_along_axis(weights_PN, order, axis=1).cumsum(axis=1) / scores_PN.shape[1], 1.0)
    steps_PN = descending_PN - np.append(descending_PN[:, 1:], np.zeros((len(scores_PN), 1)), axis=1)
    with np.errstate(divide="ignore"):
        missed_PN = np.log1p(-above_PN)
    leak_PK = np.stack([(-np.expm1(each * missed_PN) * steps_PN).sum(axis=1) for each in k], axis=1)
    return leak_PK, weights_PN


def _warning(effective_P: Floats, mean_weight: float, k: int) -> str | None:
    if abs(mean_weight - 1) > WEIGHT_ERROR:
        return f"the mean weight is {mean_weight:.2f}, not 1: the samples miss much of what is wanted"
    reached = float(np.quantile(effective_P, 1 - SHARE_OF_PROMPTS))
    if reached < k:
        return f"a tenth of the prompts have {reached:.0f} effective samples or fewer, less than k = {k}"
    return None
