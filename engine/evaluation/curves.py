"""Curves of leak@k from an evaluation: intervals, excess over the retain model, bounds from above and from below.

Evaluations come in, the Curves of results.json come out. Knows nothing of stages or of how samples were drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.evaluate import Evaluation, Key
from engine.leak.bounds import leak_floor, mean_leak_bound
from engine.leak.curve import CurveIntervals, curve_intervals
from engine.leak.estimator import Floats, Ints
from engine.leak.intervals import (
    Difference,
    Mean,
    population_difference,
    population_mean,
    sampling_difference,
    sampling_mean,
)
from engine.leak.per_prompt import PromptLeaks
from engine.leak.variance import split_noise
from engine.reporting.records import Curve, Intervals
from engine.reporting.results import tally
from engine.stages.known_answers import Known

FAR_K = (10**3, 10**6, 10**9)  # where the leak floor is told beside the k that were asked for


def curves(experiment: Experiment, evaluation: Evaluation, retain: Evaluation | None) -> list[Curve]:
    """leak@k of every group, metric and decoding, its bounds, and the excess over the retain model if there is one."""
    return curves_of_all(experiment, [(evaluation, retain)])[0]


def curves_of_all(experiment: Experiment, models: Sequence[tuple[Evaluation, Evaluation | None]]) -> list[list[Curve]]:
    """`curves` of several models, each beside the retain model: their intervals are computed together, which takes
    hardly longer than those of one."""
    judged = [
        _Judged.of(experiment, evaluation, key, retain.leaks.get(key) if retain is not None else None)
        for evaluation, retain in models
        for key in evaluation.leaks
    ]
    confidence = experiment.leak.confidence
    population = curve_intervals([each.mean for each in judged], [each.excess for each in judged], confidence)
    sampled = [(each.sampled, each.sampled_excess) for each in judged if each.sampled is not None]
    these = iter(curve_intervals([mean for mean, _ in sampled], [excess for _, excess in sampled], confidence))
    made = iter(
        _curve(experiment, each, found, None if each.sampled is None else next(these))
        for each, found in zip(judged, population, strict=True)
    )
    return [[next(made) for _ in evaluation.leaks] for evaluation, _ in models]


@dataclasses.dataclass(frozen=True, eq=False)
class _Judged:
    """One curve before its intervals. own: prompts with a score for every k; kept: those of them that the retain model
    has one for. mean, excess: an estimate for prompts like these; sampled, sampled_excess: for these very prompts.
    """

    evaluation: Evaluation
    key: Key
    own: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    mean: Mean
    excess: Difference | None
    sampled: Mean | None
    sampled_excess: Difference | None

    @classmethod
    def of(cls, experiment: Experiment, evaluation: Evaluation, key: Key, baseline: PromptLeaks | None) -> _Judged:
        group, metric, _ = key
        leaks, k = evaluation.leaks[key], np.array(experiment.leak.k)
        own_P = np.asarray(~np.isnan(leaks.values).any(axis=1))
        kept_P = own_P if baseline is None else np.asarray(own_P & ~np.isnan(baseline.values).any(axis=1))
        if not kept_P.any():
            raise UserError(
                f"leak@{k[-1]} of {group} by {metric}: no prompt has as many samples with a score "
                f"({tally(evaluation.failures)}); ask for smaller leak.k or draw more, sampling.n"
            )
        clusters = evaluation.clusters_of(group).part(kept_P)
        mean, excess = population_mean(leaks.values[kept_P], clusters, len(k)), None
        sampled, sampled_excess = _sampling(leaks, kept_P, k), None
        if baseline is not None:
            excess = population_difference(leaks.values[kept_P], baseline.values[kept_P], clusters, len(k))
            beside = _sampling(baseline, kept_P, k)
            if sampled is not None and beside is not None:
                sampled_excess = sampling_difference(sampled, beside)
        return cls(evaluation, key, own_P, kept_P, mean, excess, sampled, sampled_excess)


def _curve(experiment: Experiment, judged: _Judged, intervals: CurveIntervals, these: CurveIntervals | None) -> Curve:
    evaluation, key, own_P, kept_P = judged.evaluation, judged.key, judged.own, judged.kept
    group, metric, decoding = key
    leaks, k = evaluation.leaks[key], np.array(experiment.leak.k)
    clusters = evaluation.clusters_of(group).part(kept_P)
    found = dict(vars(intervals))
    found["excess_p"] = found.pop("excess_p_value")
    found["bound"] = mean_leak_bound(leaks.values[own_P], experiment.leak.confidence)
    if leaks.variance is not None:
        noise = split_noise(k, leaks.values[kept_P], leaks.variance[kept_P], clusters)
        found |= {"sampling_error": noise.sampling, "prompt_error": noise.prompts, "cluster_error": noise.clusters}
    if leaks.limits is not None:
        found["prompt_bound"] = leaks.limits[own_P].max(axis=0)
    known = evaluation.known.get(key)
    if known is not None:
        found["floor"] = _floor(known, k)
    lists: dict[str, Any] = {name: _plain(each) for name, each in found.items() if each is not None}
    return Curve(
        group=group,
        metric=metric,
        decoding=decoding,
        k=k.tolist(),
        mean=float(leaks.means[kept_P].mean()),
        prompts=int(kept_P.sum()),
        clusters=clusters.count,
        these=None if these is None else _these(these),
        samples=leaks.samples,
        failed=leaks.failed,
        excluded=int((~kept_P).sum()),
        how=leaks.how,
        half_width=leaks.half_width,
        far_floor=dict(zip(map(str, FAR_K), _floor(known, np.array(FAR_K)).tolist(), strict=True)) if known else None,
        **lists,
    )


def _sampling(leaks: PromptLeaks, kept_P: NDArray[np.bool_], k: Ints) -> Mean | None:
    """Mean leak@k of the kept prompts, as an estimate for these very prompts; None without the samples' variance."""
    if leaks.variance is None:
        return None
    blocks = np.maximum((leaks.samples - leaks.failed) // k, 1)  # as if one prompt had all that failed
    return sampling_mean(leaks.values[kept_P], leaks.variance[kept_P], blocks, len(k))


def _these(found: CurveIntervals) -> Intervals:
    excess = (found.excess_low, found.excess_high, found.excess_p_value)
    return Intervals(
        _plain(found.low), _plain(found.high), *(None if values is None else _plain(values) for values in excess)
    )


def _floor(known: list[Known | None], k: Ints) -> Floats:
    """Mean over the prompts of the lower bound that their known answers give: float64 [K]."""
    floors = [np.zeros(len(k)) if each is None else leak_floor(each.log_probs, k, each.scores) for each in known]
    return np.asarray(np.mean(floors, axis=0))


def _plain(values: Floats) -> list[Any]:
    """A list with None for what is not known: JSON has no NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]
