"""leak@k: from the scores of n samples a prompt to the expected worst of k.

In: scores in [0, 1], [prompts, samples]; out: leak@k of each prompt and their mean at every k asked for. Knows nothing
of models, texts, files or of what a score means.
Shape letters: P prompts, N samples of a prompt, K values of k.
Source of the estimator: "Leak@k", arXiv 2511.04934; for binary scores it is pass@k, arXiv 2107.03374.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = ArrayLike | Sequence[Sequence[float | None] | ArrayLike]

LARGEST_DEFAULT_K = 128
_BLOCK = 2**22  # weights held at once: bounds memory at n = 1e5 with many k


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
    k_K = check_k(k, scores_PN.shape[1])
    leak_K = prompt_leak(scores_PN, k_K).mean(axis=0)
    return leak_K.reshape(np.shape(k))


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


def check_k(k: int | Sequence[int] | Ints, n: int) -> Ints:
    given = np.atleast_1d(np.asarray(k))
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise ValueError(f"k must be an integer or a flat list of integers, found {k!r}")
    if given.min() < 1 or given.max() > n:
        wrong = int(given.min() if given.min() < 1 else given.max())
        raise ValueError(
            f"k must be in 1..{n} (the samples of a prompt), found {wrong}; k > n has no unbiased estimate"
        )
    return given.astype(np.int64)
