"""The leak@k curve of a model: every k with its interval, and the excess over a retain model with interval and p-value.

In: scores in [0, 1], [prompts, samples], and which prompts belong together; out: a LeakCurve. Knows nothing of models,
texts or files. Shape letters: P prompts, N samples of a prompt, K values of k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.leak.batched import ends_and_p_values, ends_of_means
from engine.leak.clusters import Labels, clusters_of
from engine.leak.estimator import Floats, Ints, Rows, check_k, default_k, pad_rows, prompt_leak, valid_samples
from engine.leak.intervals import (
    INFERENCES,
    Difference,
    Mean,
    population_difference,
    population_mean,
    sampling_difference,
    sampling_mean,
)
from engine.leak.variance import sampling_variance


@dataclasses.dataclass(frozen=True, eq=False)
class CurveIntervals:
    """leak@k with its interval, float64 [K] each; excess, its interval and its two-sided p-value, None without a retain
    model. The p-value is 1 - confidence or less exactly where the excess' interval leaves 0 out."""

    leak: Floats
    low: Floats
    high: Floats
    excess: Floats | None = None
    excess_low: Floats | None = None
    excess_high: Floats | None = None
    excess_p_value: Floats | None = None

    def at(self, columns: Ints) -> CurveIntervals:
        """The same of these columns, in their order."""
        return CurveIntervals(**{name: each[columns] for name, each in vars(self).items() if each is not None})


@dataclasses.dataclass(frozen=True, eq=False)
class LeakCurve(CurveIntervals):
    """leak@k over k, with confidence intervals.

    k: int64 [K]. leak, low, high: float64 [K]. mean: the mean score of a sample, which is leak@1.
    excess, excess_low, excess_high, excess_p_value: float64 [K], leak@k minus the retain model's on the same prompts;
    None without one. inference: "population", for prompts like these, or "prompts", for these very prompts.
    prompts: prompts that the curve is a mean of. clusters: clusters that they are of, as many as prompts where none
    were given. excluded: prompts left out, with too few valid samples for the largest k. samples: samples drawn of a
    prompt (the fewest, where prompts differ). failed: samples without a score, in all.
    """

    k: Ints = dataclasses.field(kw_only=True)
    mean: float = dataclasses.field(kw_only=True)
    prompts: int = dataclasses.field(kw_only=True)
    clusters: int = dataclasses.field(kw_only=True)
    samples: int = dataclasses.field(kw_only=True)
    failed: int = dataclasses.field(kw_only=True)
    excluded: int = dataclasses.field(kw_only=True)
    confidence: float = dataclasses.field(kw_only=True)
    inference: str = dataclasses.field(kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and lists, for JSON; the excess fields only where there is a retain model."""
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                plain[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return plain


def leak_curve(
    scores: Rows,
    k: int | Sequence[int] | Ints | None = None,
    confidence: float = 0.95,
    retain_scores: Rows | None = None,
    seed: int = 0,
    clusters: Labels | None = None,
    *,
    inference: str = "population",
) -> LeakCurve:
    """leak@k at every k with confidence intervals, and the excess over a retain model.

    scores: [prompts, samples] in [0, 1], or one sequence a prompt; None or NaN = failed: excluded and counted.
    k: values in 1..samples; None = powers of two up to min(128, the fewest valid samples of a prompt that has any).
    A prompt with fewer valid samples than the largest k is left out at every k and counted in `.excluded`, so that the
    curve is one mean over the same prompts. retain_scores: the retain model's scores of the same prompts in the same
    order; prompts left out of one are left out of both. clusters: one label a prompt (its author, its article), equal
    where prompts share one; None: every prompt stands for itself. inference: "population": intervals for prompts like
    these, of clusters like these; "prompts": for these very prompts, the error of their samples alone.
    confidence in (0, 1). seed: has no effect; intervals draw nothing at random.
    Raises ValueError for empty input, scores outside [0, 1], k out of range, no prompt left, unequal prompt counts, a
    number of labels other than that of the prompts.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, found {confidence}")
    if inference not in INFERENCES:
        raise ValueError(f"inference must be one of {', '.join(INFERENCES)}, found {inference!r}")
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
    k_K = default_k(int(valid_P[valid_P > 0].min())) if k is None else check_k(k, int(drawn_P.min()))
    kept_P = valid_P >= k_K.max()
    if not kept_P.any():
        raise ValueError(f"k = {k_K.max()} but no prompt has more than {valid_P.max()} valid samples")

    order = np.argsort(k_K, kind="stable")
    rising_K = k_K[order]
    kept = [scores_PN[kept_P] for scores_PN in sets]
    leaks = [prompt_leak(scores_PN, rising_K) for scores_PN in kept]
    grouped = clusters_of(clusters, len(model_PN)).part(kept_P)
    excess: Difference | None = None
    if inference == "population":
        mean = population_mean(leaks[0], grouped, len(rising_K))
        if leaks[1:]:
            excess = population_difference(leaks[0], leaks[1], grouped, len(rising_K))
    else:
        mean, *others = (
            sampling_mean(
                leak_PK,
                sampling_variance(scores_PN, rising_K),
                valid_samples(scores_PN).min() // rising_K,
                curve=len(rising_K),
            )
            for leak_PK, scores_PN in zip(leaks, kept, strict=True)
        )
        if others:
            excess = sampling_difference(mean, others[0])
    (found,) = curve_intervals([mean], [excess], confidence)
    return LeakCurve(
        **vars(found.at(np.argsort(order))),
        k=k_K,
        mean=float(np.nanmean(kept[0], axis=1).mean()),
        prompts=int(kept_P.sum()),
        clusters=grouped.count,
        samples=int(drawn_P[kept_P].min()),
        failed=failed,
        excluded=int((~kept_P).sum()),
        confidence=confidence,
        inference=inference,
    )


def curve_intervals(
    means: Sequence[Mean], differences: Sequence[Difference | None], confidence: float = 0.95
) -> list[CurveIntervals]:
    """The intervals of many curves at once, in their order, float64 [K] in [0, 1] each, of differences in [-1, 1].

    means: leak@k over prompts of each curve, k rising; differences: what it has beyond the retain model's, None without
    one, which are differences of two Means. confidence in (0, 1)."""
    ends = ends_of_means(means, 1 - confidence)
    tests = iter(ends_and_p_values([each for each in differences if each is not None], confidence))
    found = []
    for mean, (low, high), excess in zip(means, ends, differences, strict=True):
        if excess is None:
            found.append(CurveIntervals(mean.value, low, high))
        else:
            found.append(CurveIntervals(mean.value, low, high, excess.value, *next(tests)))
    return found
