"""leak@k: from the scores of n samples a prompt to the expected worst of k, with its uncertainty.

In: scores in [0, 1], [prompts, samples]; out: leak@k at every k asked for, intervals, excess over a retain model.
Knows nothing of models, texts, files or of what a score means.
Shape letters: P prompts, N samples of a prompt, K values of k.
Source of the estimator: "Leak@k", arXiv 2511.04934; for binary scores it is pass@k, arXiv 2107.03374.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.leak.intervals import mean_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = ArrayLike | Sequence[Sequence[float | None] | ArrayLike]

LARGEST_DEFAULT_K = 128
_BLOCK = 2**22  # weights held at once: bounds memory at n = 1e5 with many k


@dataclasses.dataclass(frozen=True, eq=False)
class LeakCurve:
    """leak@k over k, with confidence intervals over prompts.

    k: int64 [K]. leak, low, high: float64 [K]. mean: the mean score of a sample, which is leak@1.
    excess, excess_low, excess_high: float64 [K], leak@k minus the retain model's on the same prompts; None without one.
    prompts: prompts that the curve is a mean of. excluded: prompts left out, with too few valid samples for the largest
    k. samples: samples drawn of a prompt (the fewest, where prompts differ). failed: samples without a score, in all.
    """

    k: Ints
    leak: Floats
    low: Floats
    high: Floats
    mean: float
    excess: Floats | None
    excess_low: Floats | None
    excess_high: Floats | None
    prompts: int
    samples: int
    failed: int
    excluded: int
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and lists, for JSON; the excess fields only where there is a retain model."""
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                plain[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return plain


def leak_at_k(scores: ArrayLike, k: int | Sequence[int] | Ints) -> Floats:
    """leak@k: the expected largest score of k samples, averaged over prompts.

    scores: [prompts, samples] in [0, 1]. k: one or many of 1..samples. Returns float64 of the shape of k.
    Raises ValueError for empty input, NaN, scores outside [0, 1] and k out of range.
    Source: sum over j = k..n of C(j-1, k-1) / C(n, k) * S_(j) with sorted scores (arXiv 2511.04934).
    """
    scores_PN = np.asarray(scores, dtype=np.float64)
    if scores_PN.ndim != 2:
        raise ValueError(f"scores must be [prompts, samples], found {scores_PN.ndim} dimension(s)")
    _check_range(scores_PN)
    if np.isnan(scores_PN).any():
        raise ValueError("scores contain NaN: give failed samples to leak_curve, which excludes and counts them")
    k_K = _check_k(k, scores_PN.shape[1])
    leak_K = prompt_leak(scores_PN, k_K).mean(axis=0)
    return leak_K.reshape(np.shape(k))


def leak_curve(
    scores: Rows,
    k: int | Sequence[int] | Ints | None = None,
    confidence: float = 0.95,
    retain_scores: Rows | None = None,
    seed: int = 0,
    *,
    interval: str = "bounded",
    resamples: int = 10_000,
) -> LeakCurve:
    """leak@k at every k with confidence intervals over prompts, and the excess over a retain model.

    scores: [prompts, samples] in [0, 1], or one sequence a prompt; None or NaN = failed: excluded and counted.
    k: values in 1..samples; None = powers of two up to min(128, the fewest valid samples of a prompt that has any).
    A prompt with fewer valid samples than the largest k is left out at every k and counted in `.excluded`, so that the
    curve is one mean over the same prompts. retain_scores: the retain model's scores of the same prompts in the same
    order; prompts left out of one are left out of both, and the excess is resampled in pairs.
    interval, resamples: as engine.leak.intervals.mean_interval. confidence in (0, 1).
    Raises ValueError for empty input, scores outside [0, 1], k out of range, no prompt left, unequal prompt counts.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, found {confidence}")
    model_PN, drawn_P = pad_rows(scores)
    failed = int(drawn_P.sum() - valid_samples(model_PN).sum())
    sets = [model_PN]
    if retain_scores is not None:
        retain_PN, retain_drawn_P = pad_rows(retain_scores)
        if len(retain_PN) != len(model_PN):
            raise ValueError(f"model has {len(model_PN)} prompts, retain has {len(retain_PN)}: they must be the same")
        sets.append(retain_PN)
        drawn_P = np.minimum(drawn_P, retain_drawn_P)
    valid_P = valid_samples(*sets)
    if not valid_P.any():
        raise ValueError("no prompt has a valid sample: every score failed")
    k_K = default_k(int(valid_P[valid_P > 0].min())) if k is None else _check_k(k, int(drawn_P.min()))
    kept_P = valid_P >= k_K.max()
    if not kept_P.any():
        raise ValueError(f"k = {k_K.max()} but no prompt has more than {valid_P.max()} valid samples")

    leak_PK = prompt_leak(model_PN[kept_P], k_K)
    retain_PK = prompt_leak(sets[1][kept_P], k_K) if retain_scores is not None else None
    intervals = intervals_over_prompts(leak_PK, retain_PK, confidence, seed, interval, resamples)
    return LeakCurve(
        k=k_K,
        mean=float(np.nanmean(model_PN[kept_P], axis=1).mean()),
        **intervals,
        prompts=int(kept_P.sum()),
        samples=int(drawn_P[kept_P].min()),
        failed=failed,
        excluded=int((~kept_P).sum()),
        confidence=confidence,
    )


def intervals_over_prompts(
    leak_PK: Floats,
    retain_PK: Floats | None,
    confidence: float = 0.95,
    seed: int = 0,
    interval: str = "bounded",
    resamples: int = 10_000,
) -> dict[str, Any]:
    """leak, low, high and excess, excess_low, excess_high of a LeakCurve from leak@k of each prompt: float64 [K] each.

    leak_PK, retain_PK: float64 [prompts, K] of the same prompts in the same order; without the latter no excess.
    """
    low_K, high_K = mean_interval(leak_PK, confidence, seed, interval, resamples)
    found: dict[str, Any] = {"leak": leak_PK.mean(axis=0), "low": low_K, "high": high_K}
    found |= dict.fromkeys(("excess", "excess_low", "excess_high"))
    if retain_PK is not None:
        excess_PK, both = leak_PK - retain_PK, (-1.0, 1.0)
        found["excess"] = excess_PK.mean(axis=0)
        found["excess_low"], found["excess_high"] = mean_interval(
            excess_PK, confidence, seed, interval, resamples, both
        )
    return found


def valid_samples(*sets_PN: Floats) -> Ints:
    """Samples with a score of each prompt, the fewest over the sets (model, retain): int64 [prompts]."""
    return np.min([(~np.isnan(scores_PN)).sum(axis=1) for scores_PN in sets_PN], axis=0)


def prompt_leak(scores_PN: Floats, k_K: Ints) -> Floats:
    """The unbiased leak@k of each prompt: float64 [prompts, K].

    scores_PN: [prompts, samples], NaN = no sample there; every prompt must have k_K.max() valid samples or more.
    """
    if len(scores_PN) > (prompts := max(1, _BLOCK // scores_PN.shape[1])):  # bounds memory with many prompts
        blocks = [scores_PN[start : start + prompts] for start in range(0, len(scores_PN), prompts)]
        return np.concatenate([prompt_leak(block, k_K) for block in blocks])
    ascending_PN = np.sort(scores_PN, axis=1)  # NaN sort last
    valid_P = scores_PN.shape[1] - np.isnan(ascending_PN).sum(axis=1)
    leak_PK = np.empty((len(scores_PN), len(k_K)))
    for valid in np.unique(valid_P):
        rows = valid_P == valid
        ascending = ascending_PN[rows, :valid]
        step = max(1, _BLOCK // int(valid))
        for start in range(0, len(k_K), step):
            block = slice(start, start + step)
            leak_PK[rows, block] = ascending @ order_weights(int(valid), k_K[block]).T
    return np.minimum(leak_PK, 1.0)  # weights sum to one but for rounding


def order_weights(n: int, k_K: Ints) -> Floats:
    """C(j-1, k-1) / C(n, k) for j = 1..n: the chance that the largest of k of n samples is the j-th smallest. [K, n].

    By the ratio of neighbours, (j-k)/(j-1) from j = n down: no factorials, so nothing overflows or cancels; in extended
    precision where the machine has it, so that n = 1e5 multiplications stay exact to 1e-12.
    """
    j_N = np.arange(n, 1, -1, dtype=np.longdouble)
    ratio_KN = np.maximum(j_N - k_K[:, None], 0) / (j_N - 1)
    first_K1 = (k_K / np.longdouble(n))[:, None]
    weights_KN = np.concatenate([first_K1, first_K1 * np.cumprod(ratio_KN, axis=1)], axis=1)
    return weights_KN[:, ::-1].astype(np.float64)


def default_k(n: int) -> Ints:
    """Powers of two up to min(128, n)."""
    return np.array([2**e for e in range(min(LARGEST_DEFAULT_K, n).bit_length())], dtype=np.int64)


def pad_rows(scores: Rows) -> tuple[Floats, Ints]:
    """Scores as [prompts, longest row] with NaN for what failed or was not drawn, and the samples drawn of each prompt.

    Raises ValueError for empty input and scores outside [0, 1].
    """
    rows = [np.asarray(row, dtype=np.float64) for row in scores]  # type: ignore[union-attr]
    for index, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"scores of prompt {index} must be a flat list, found {row.ndim} dimension(s)")
    drawn_P = np.array([len(row) for row in rows], dtype=np.int64)
    if not drawn_P.size or not drawn_P.all():
        raise ValueError("empty input: scores must hold at least one prompt and one sample of every prompt")
    padded_PN = np.full((len(rows), int(drawn_P.max())), np.nan)
    for row, padded in zip(rows, padded_PN, strict=True):
        padded[: len(row)] = row
    _check_range(padded_PN)
    return padded_PN, drawn_P


def _check_range(scores_PN: Floats) -> None:
    if scores_PN.size == 0:
        raise ValueError("empty input: scores must hold at least one prompt and one sample of every prompt")
    outside_PN = (scores_PN < 0) | (scores_PN > 1)
    if outside_PN.any():
        prompt, sample = np.argwhere(outside_PN)[0]
        value = scores_PN[prompt, sample]
        raise ValueError(f"scores must lie in [0, 1], found {value} at prompt {prompt}, sample {sample}")


def _check_k(k: int | Sequence[int] | Ints, n: int) -> Ints:
    given = np.atleast_1d(np.asarray(k))
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise ValueError(f"k must be an integer or a flat list of integers, found {k!r}")
    if given.min() < 1 or given.max() > n:
        wrong = int(given.min() if given.min() < 1 else given.max())
        raise ValueError(
            f"k must be in 1..{n} (the samples of a prompt), found {wrong}; k > n has no unbiased estimate"
        )
    return given.astype(np.int64)
