"""Leakage above what a model shows that never saw the forget set.

In: scores of the model and of the retain model on the same prompts; out: a test and the prompts to look at.
The interval of the excess is in engine.leak.estimator.leak_curve. Knows nothing of files or models.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.estimator import Floats, Ints, prompt_leak


@dataclasses.dataclass(frozen=True)
class WorstPrompt:
    """A prompt that leaks more than the retain model does. index: its row; sample: the column of its highest score."""

    index: int
    excess: float
    leak: float
    retain_leak: float
    sample: int


def excess_p_value(
    scores_PN: Floats, retain_PN: Floats, k_K: Ints, seed: int = 0, permutations: int = 10_000
) -> Floats:
    """One-sided p-value of "leaks more than the retain model" at each k: float64 [K].

    scores_PN, retain_PN: [prompts, samples] in [0, 1] of the same prompts in the same order, NaN = failed; both need
    k_K.max() valid samples or more of every prompt.
    """
    if len(scores_PN) != len(retain_PN):
        raise ValueError(f"model has {len(scores_PN)} prompts and retain has {len(retain_PN)}: they must be the same")
    return sign_flip_p_value(prompt_leak(scores_PN, k_K) - prompt_leak(retain_PN, k_K), seed, permutations)


def sign_flip_p_value(difference_PK: Floats, seed: int = 0, permutations: int = 10_000) -> Floats:
    """One-sided p-value of "the differences are above 0" at each k: float64 [K].

    difference_PK: [prompts, K]. Under the null the two models answer each prompt alike, so the sign of each prompt's
    difference is a coin flip: an exact permutation test, (1 + as large) / (1 + permutations).
    """
    rng = np.random.default_rng(seed)
    observed_K = difference_PK.sum(axis=0)
    as_large_K = np.zeros(difference_PK.shape[1])
    block = max(1, 2**22 // len(difference_PK))
    for start in range(0, permutations, block):
        signs = rng.integers(2, size=(min(block, permutations - start), len(difference_PK))) * 2.0 - 1
        as_large_K += (signs @ difference_PK >= observed_K - 1e-12).sum(axis=0)
    return (1 + as_large_K) / (1 + permutations)


def worst_prompts(scores_PN: Floats, retain_PN: Floats, k: int, top: int = 10) -> list[WorstPrompt]:
    """The prompts with the largest positive excess leak@k, worst first; shapes as in excess_p_value."""
    k_K = np.array([k])
    leak_P, retain_P = prompt_leak(scores_PN, k_K)[:, 0], prompt_leak(retain_PN, k_K)[:, 0]
    excess_P = leak_P - retain_P
    worst = [index for index in np.argsort(-excess_P, kind="stable")[:top] if excess_P[index] > 0]
    return [
        WorstPrompt(int(i), float(excess_P[i]), float(leak_P[i]), float(retain_P[i]), int(np.nanargmax(scores_PN[i])))
        for i in worst
    ]
