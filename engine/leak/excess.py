"""The prompts on which a model leaks most above what a model shows that never saw the forget set.

In: scores of the model and of the retain model on the same prompts; out: the prompts to look at. The excess over all
prompts, its interval and its p-value are engine.leak.curve's. Knows nothing of files or models.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.estimator import Floats, prompt_leak


@dataclasses.dataclass(frozen=True)
class WorstPrompt:
    """A prompt that leaks more than the retain model does. index: its row; sample: the column of its highest score."""

    index: int
    excess: float
    leak: float
    retain_leak: float
    sample: int


def worst_prompts(scores_PN: Floats, retain_PN: Floats, k: int, top: int = 10) -> list[WorstPrompt]:
    """The prompts with the largest positive excess leak@k, worst first.

    scores_PN, retain_PN: [prompts, samples] in [0, 1] of the same prompts in the same order, NaN = failed; both need k
    valid samples or more of every prompt.
    """
    k_K = np.array([k])
    leak_P, retain_P = prompt_leak(scores_PN, k_K)[:, 0], prompt_leak(retain_PN, k_K)[:, 0]
    excess_P = leak_P - retain_P
    worst = [index for index in np.argsort(-excess_P, kind="stable")[:top] if excess_P[index] > 0]
    return [
        WorstPrompt(int(i), float(excess_P[i]), float(leak_P[i]), float(retain_P[i]), int(np.nanargmax(scores_PN[i])))
        for i in worst
    ]
