"""Curves of leak@k from an evaluation: intervals, excess over the retain model, bounds from above and from below.

Evaluations come in, the Curves of results.json come out. Knows nothing of stages or of how samples were drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.evaluate import Evaluation, Key
from engine.leak.bounds import leak_floor, mean_leak_bound
from engine.leak.curve import population_intervals, sampling_intervals
from engine.leak.estimator import Floats, Ints
from engine.leak.intervals import Mean, sampling_mean
from engine.leak.per_prompt import PromptLeaks
from engine.leak.variance import split_noise
from engine.reporting.records import Curve, Intervals
from engine.reporting.results import tally
from engine.stages.known_answers import Known

FAR_K = (10**3, 10**6, 10**9)  # where the leak floor is told beside the k that were asked for


def curves(experiment: Experiment, evaluation: Evaluation, retain: Evaluation | None) -> list[Curve]:
    """leak@k of every group, metric and decoding, its bounds, and the excess over the retain model if there is one."""
    return [
        _curve(experiment, evaluation, key, retain.leaks.get(key) if retain is not None else None)
        for key in evaluation.leaks
    ]


def _curve(experiment: Experiment, evaluation: Evaluation, key: Key, baseline: PromptLeaks | None) -> Curve:
    group, metric, decoding = key
    leaks, confidence = evaluation.leaks[key], experiment.leak.confidence
    k = np.array(experiment.leak.k)
    own_P = np.asarray(~np.isnan(leaks.values).any(axis=1))
    kept_P = own_P if baseline is None else np.asarray(own_P & ~np.isnan(baseline.values).any(axis=1))
    if not kept_P.any():
        raise UserError(
            f"leak@{k[-1]} of {group} by {metric}: no prompt has as many samples with a score "
            f"({tally(evaluation.failures)}); ask for smaller leak.k or draw more, sampling.n"
        )
    leak_PK = leaks.values[kept_P]
    clusters = evaluation.clusters_of(group).part(kept_P)
    retain_PK = None if baseline is None else baseline.values[kept_P]
    found = dict(vars(population_intervals(leak_PK, retain_PK, clusters, confidence)))
    found["excess_p"] = found.pop("excess_p_value")
    means = [_sampling(each, kept_P, k) for each in (leaks, baseline) if each is not None]
    found["bound"] = mean_leak_bound(leaks.values[own_P], confidence)
    if leaks.variance is not None:
        noise = split_noise(k, leak_PK, leaks.variance[kept_P], clusters)
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
        these=_these(means, confidence),
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


def _these(means: list[Mean | None], confidence: float) -> Intervals | None:
    """For these very prompts, from the model's mean and the retain model's, if there is one."""
    model, retain = (*means, None)[:2]
    if model is None:
        return None
    found = sampling_intervals(model, retain, confidence)
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
