"""Upper bounds on leak@k that hold with the stated confidence at any sample size, and a lower one from exact
probabilities: no leak observed is not no leak.

In: scores or counts of leaking samples, or log-probabilities of leaking answers; out: bounds. Nothing is assumed of the
scores but that they lie in [0, 1] and that samples are drawn independently. Knows nothing of resampling, models or
files.
Source: Clopper and Pearson 1934; Massart 1990; Hoeffding 1963; for unlearning, Scholten et al., arXiv 2410.03523.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from engine.leak.estimator import Floats, Ints
from engine.leak.intervals import hoeffding_bound


def leak_probability_bound(leaks: ArrayLike, samples: ArrayLike, confidence: float = 0.95) -> Floats:
    """Clopper-Pearson upper bound on the probability that one sample leaks, one-sided.

    leaks, samples: counts of each prompt, 0 <= leaks <= samples, samples >= 1. Returns float64 of their shape.
    """
    from scipy.special import betaincinv

    leaks, samples = np.broadcast_arrays(np.asarray(leaks), np.asarray(samples))
    if (leaks < 0).any() or (leaks > samples).any() or (samples < 1).any():
        raise ValueError("leaks must lie in 0..samples and samples must be 1 or more")
    some = leaks < samples
    bound = np.ones(leaks.shape)
    bound[some] = betaincinv(leaks[some] + 1.0, (samples - leaks)[some], confidence)
    return bound


def binary_leak_bound(leaks: ArrayLike, samples: ArrayLike, k: Ints, confidence: float = 0.95) -> Floats:
    """Upper bound on each prompt's leak@k for binary scores, at any k, above the samples too: [prompts, K]."""
    missed = np.log1p(-np.minimum(leak_probability_bound(leaks, samples, confidence), 1 - 1e-16))
    return -np.expm1(np.multiply.outer(missed, np.asarray(k, dtype=np.float64)))


def graded_leak_bound(scores_PN: Floats, k: Ints, confidence: float = 0.95) -> Floats:
    """Upper bound on each prompt's leak@k for graded scores, at any k: float64 [prompts, K].

    scores_PN: [prompts, samples] in [0, 1], NaN = failed. leak@k = 1 - integral of F(t)^k over [0, 1]; the one-sided
    Dvoretzky-Kiefer-Wolfowitz band says F >= F_n - sqrt(ln(1 / (1 - confidence)) / 2n) everywhere at once, so the bound
    holds for all k together. confidence >= 0.5.
    """
    if confidence < 0.5:
        raise ValueError(f"the one-sided band needs confidence >= 0.5, found {confidence}")
    k = np.asarray(k)
    bound_PK = np.empty((len(scores_PN), len(k)))
    for row, bound_K in zip(scores_PN, bound_PK, strict=True):
        ascending = np.sort(row[~np.isnan(row)])
        n = len(ascending)
        if n == 0:
            bound_K[:] = 1.0
            continue
        share = np.maximum(np.arange(1, n + 1) / n - np.sqrt(-np.log(1 - confidence) / (2 * n)), 0)
        widths = np.diff(np.append(ascending, 1.0))  # F_n is j / n from the j-th smallest score to the next
        bound_K[:] = 1 - (share ** k[:, None]) @ widths
    return bound_PK


def leak_floor(log_probs: ArrayLike, k: ArrayLike, scores: ArrayLike | None = None) -> Floats:
    """Lower bound on a prompt's leak@k from the probabilities of some of its answers: float64 of the shape of k.

    log_probs: [answers] of different whole answers. k: 1 to 1e9 and beyond. scores: [answers] in [0, 1], 1 where not
    given. With q the probability of an answer that scores 1 it is 1 - (1 - q)^k; for graded scores the same is summed
    over the levels of score. Answers that are not listed count as scoring 0, hence a bound.
    Raises ValueError for probabilities that sum to more than one: the same answer twice.
    """
    probabilities = np.exp(np.asarray(log_probs, dtype=np.float64))
    if probabilities.sum() > 1 + 1e-4:
        raise ValueError(f"probabilities of different answers cannot sum to {probabilities.sum():.4f}: list each once")
    scores = np.ones_like(probabilities) if scores is None else np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    at_least = np.minimum(np.cumsum(probabilities[order]), 1.0)  # chance of a sample that scores this or more
    steps = scores[order] - np.append(scores[order][1:], 0.0)
    with np.errstate(divide="ignore"):
        missed = np.log1p(-at_least)
    return np.asarray(-np.expm1(np.multiply.outer(np.asarray(k, dtype=np.float64), missed)) @ steps)


def per_prompt_confidence(confidence: float, prompts: int) -> float:
    """The confidence of each prompt's bound so that all of them hold together: Sidak's, prompts being independent."""
    return float(confidence ** (1 / prompts))


def mean_leak_bound(leak_PK: Floats, confidence: float = 0.95) -> Floats:
    """Upper bound on leak@k over the forget set, "with 95 % confidence leak@k <= x": float64 [K], one-sided.

    leak_PK: the unbiased leak@k of each prompt (engine.leak.estimator.prompt_leak). Their mean over independent prompts
    obeys P(mean <= m) <= exp(-prompts * KL(m, leak@k)) (Hoeffding 1963, theorem 1), with prompts alike or not: so the
    bound holds for this forget set, whose samples are independent, and for a population that its prompts, not whole
    authors of several prompts, are drawn from. Nothing leaked: 1 - (1 - confidence)^(1 / prompts). Each k's bound holds
    by itself.
    """
    return hoeffding_bound(np.clip(leak_PK.mean(axis=0), 0, 1), len(leak_PK), 1 - confidence)
