"""leak@k of each prompt, however it was found: what a curve, its interval, its excess and its bounds are made of.

In: scores of samples, [prompts, samples]; out: PromptLeaks. Knows nothing of models, stages or files.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.bounds import binary_leak_bound, graded_leak_bound, per_prompt_confidence
from engine.leak.estimator import Floats, Ints, prompt_leak, valid_samples
from engine.leak.variance import sampling_variance


@dataclasses.dataclass(frozen=True, eq=False)
class PromptLeaks:
    """leak@k of P prompts at K values of k.

    values: float64 [P, K], a row of NaN where a prompt has too few samples with a score. means: float64 [P], the mean
    score of a sample. samples: drawn of a prompt (the fewest that are counted); failed: samples without a score, in
    all. variance: float64 [P, K], of each value over sampling seeds. limits: float64 [P, K], upper bounds that hold for
    all prompts at once. how: "sampled" n times a prompt, or "adaptive".
    half_width: of the sampling error of the mean at the largest k, where sampling was adaptive and it is known.
    """

    values: Floats
    means: Floats
    samples: int
    failed: int
    how: str = "sampled"
    variance: Floats | None = None
    limits: Floats | None = None
    half_width: float | None = None

    def part(self, chosen: Ints) -> PromptLeaks:
        """The same of some of the prompts, by index."""
        cut = {name: getattr(self, name) for name in ("values", "means", "variance", "limits")}
        return dataclasses.replace(
            self, **{name: each[chosen] for name, each in cut.items() if each is not None}, half_width=None
        )


def leaks_of_scores(scores_PN: Floats, k_K: Ints, confidence: float = 0.95) -> PromptLeaks:
    """leak@k of each prompt by the unbiased estimator. scores_PN: [prompts, samples] in [0, 1], NaN = failed."""
    valid_P = valid_samples(scores_PN)
    kept_P = valid_P >= k_K.max()
    values_PK = np.full((len(scores_PN), len(k_K)), np.nan)
    variance_PK = values_PK.copy()
    if kept_P.any():
        values_PK[kept_P] = prompt_leak(scores_PN[kept_P], k_K)
        variance_PK[kept_P] = sampling_variance(scores_PN[kept_P], k_K)
    with np.errstate(invalid="ignore"):
        means_P = np.nansum(scores_PN, axis=1) / np.where(valid_P > 0, valid_P, np.nan)
    return PromptLeaks(
        values=values_PK,
        means=means_P,
        samples=scores_PN.shape[1],
        failed=int(scores_PN.size - valid_P.sum()),
        variance=variance_PK,
        limits=upper_limits(scores_PN, k_K, confidence, together=True),
    )


def upper_limits(scores_PN: Floats, k_K: Ints, confidence: float = 0.95, together: bool = False) -> Floats:
    """Upper bound on each prompt's leak@k: float64 [P, K], 1 where no sample has a score.

    together: all of them hold at once with that confidence, else each by itself. Clopper-Pearson where every score is 0
    or 1, else the Dvoretzky-Kiefer-Wolfowitz band, which needs a confidence of half or more.
    """
    each = per_prompt_confidence(confidence, len(scores_PN)) if together else confidence
    valid_P = valid_samples(scores_PN)
    limits_PK = np.ones((len(scores_PN), len(k_K)))
    some_P = valid_P > 0
    if np.isin(scores_PN[~np.isnan(scores_PN)], (0.0, 1.0)).all():
        leaks_P = np.nansum(scores_PN[some_P], axis=1)
        limits_PK[some_P] = binary_leak_bound(leaks_P, valid_P[some_P], k_K, each)
    elif each >= 0.5:
        limits_PK[some_P] = graded_leak_bound(scores_PN[some_P], k_K, each)
    return limits_PK
