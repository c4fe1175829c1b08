"""What a model's likelihoods say: probability, truth ratio, forget quality and model utility, as TOFU defines them.

Mean negative log-likelihoods (nats a token) of answers come in; arrays and floats come out. Knows nothing of models.
Source: Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121, section 2.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def probability(nll: ArrayLike) -> Floats:
    """Length-normalised probability of each answer, P(a|q)^(1/|a|) = exp(-NLL), in [0, 1]: the shape of `nll`."""
    return np.exp(-np.asarray(nll, dtype=np.float64))


def normalised_probability(correct_nll: ArrayLike, wrong_nll: ArrayLike) -> Floats:
    """Probability of the correct answer among the correct and the wrong ones, in [0, 1]: [items].

    correct_nll: [items]; wrong_nll: [items, wrong]. Taken in logarithms: it stays exact where every answer's own
    probability vanishes (OpenUnlearning adds 1e-10 to the denominator, which makes those 0).
    """
    correct, wrong = _items_and_wrong(correct_nll, wrong_nll)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(correct[:, None] - wrong).sum(axis=1))


def truth_ratio(correct_nll: ArrayLike, wrong_nll: ArrayLike) -> Floats:
    """R: geometric mean of the wrong answers' probabilities over the correct answer's, 0 or more: [items].

    correct_nll: [items], of the paraphrased answer where there is one, else of the answer; wrong_nll: [items, wrong].
    Infinite where the quotient is beyond float64. Source: TOFU, equation 1, with the geometric mean of its code.
    """
    correct, wrong = _items_and_wrong(correct_nll, wrong_nll)
    with np.errstate(over="ignore"):
        return np.exp(correct - wrong.mean(axis=1))


def forget_truth_ratio(ratios: ArrayLike) -> float:
    """Mean of min(R, 1/R) over the forget set, in [0, 1]: 1 where wrong and right answers are equally likely."""
    ratios = np.asarray(ratios, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return float(np.minimum(ratios, 1 / ratios).mean())


def utility_truth_ratio(ratios: ArrayLike) -> float:
    """Mean of max(0, 1 - R) over a set that the model is to know, in [0, 1]: 1 where wrong answers are hopeless."""
    return float(np.maximum(0.0, 1 - np.asarray(ratios, dtype=np.float64)).mean())


def forget_quality(ratios: ArrayLike, retain_ratios: ArrayLike) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test that both models' truth ratios have one distribution.

    ratios, retain_ratios: [items] on the forget set, of the unlearned and of the retain model. 1: told apart by
    nothing. Raises ValueError for empty input or NaN. Source: TOFU, section 2.2.2.
    """
    from scipy.stats import ks_2samp

    samples = [np.asarray(each, dtype=np.float64) for each in (ratios, retain_ratios)]
    if any(each.size == 0 or np.isnan(each).any() for each in samples):
        raise ValueError("forget quality needs at least one truth ratio of each model, none of them NaN")
    return float(ks_2samp(*samples).pvalue)


def log10_forget_quality(ratios: ArrayLike, retain_ratios: ArrayLike) -> float:
    """Decimal logarithm of `forget_quality`, not below -323.3, the smallest that float64 tells from zero."""
    return float(np.log10(max(forget_quality(ratios, retain_ratios), np.nextafter(0.0, 1.0))))


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of the values, 0 where one is 0. TOFU: probability, ROUGE and truth ratio of three sets each.

    Raises ValueError for empty input, NaN or negative values. Source: TOFU, section 2.2.1.
    """
    from scipy.stats import hmean

    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not (values >= 0).all():
        raise ValueError(f"model utility is the harmonic mean of values of 0 or more, found {values.tolist()}")
    return float(hmean(values))


def _items_and_wrong(correct_nll: ArrayLike, wrong_nll: ArrayLike) -> tuple[Floats, Floats]:
    correct, wrong = np.asarray(correct_nll, dtype=np.float64), np.asarray(wrong_nll, dtype=np.float64)
    if correct.ndim != 1 or wrong.shape[:1] != correct.shape or wrong.ndim != 2 or wrong.shape[1] == 0:
        raise ValueError(
            f"expected correct_nll [items], wrong_nll [items, wrong]; found {correct.shape}, {wrong.shape}"
        )
    return correct, wrong
