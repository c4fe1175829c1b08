"""Curves of leak@k from an evaluation: intervals, excess over the retain model, bounds from above and from below.

Evaluations come in, the Curves of results.json come out. Knows nothing of stages or of how samples were drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.evaluate import Evaluation, Key
from engine.leak.bounds import leak_floor, mean_leak_bound
from engine.leak.clusters import clusters_of
from engine.leak.curve import population_intervals
from engine.leak.estimator import Floats, Ints
from engine.leak.per_prompt import PromptLeaks
from engine.leak.variance import split_noise
from engine.reporting.results import Curve, tally
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
    own_P = ~np.isnan(leaks.values).any(axis=1)
    kept_P = own_P if baseline is None else own_P & ~np.isnan(baseline.values).any(axis=1)
    if not kept_P.any():
        raise UserError(
            f"leak@{k[-1]} of {group} by {metric}: no prompt has as many samples with a score "
            f"({tally(evaluation.failures)}); ask for smaller leak.k or draw more, sampling.n"
        )
    leak_PK = leaks.values[kept_P]
    clusters = clusters_of(None, len(leak_PK))
    retain_PK = None if baseline is None else baseline.values[kept_P]
    found = dict(vars(population_intervals(leak_PK, retain_PK, clusters, confidence)))
    found["excess_p"] = found.pop("excess_p_value")
    found["bound"] = mean_leak_bound(leaks.values[own_P], confidence)
    if leaks.variance is not None:
        noise = split_noise(k, leak_PK, leaks.variance[kept_P], clusters)
        found |= {"sampling_error": noise.sampling, "prompt_error": noise.prompts}
    if leaks.limits is not None:
        found["prompt_bound"] = leaks.limits[own_P].max(axis=0)
    known = evaluation.known.get(key)
    if known is not None:
        found["floor"] = _floor(known, k)
    return Curve(
        group=group,
        metric=metric,
        decoding=decoding,
        k=k.tolist(),
        mean=float(leaks.means[kept_P].mean()),
        prompts=int(kept_P.sum()),
        samples=leaks.samples,
        failed=leaks.failed,
        excluded=int((~kept_P).sum()),
        how=leaks.how,
        half_width=leaks.half_width,
        far_floor=dict(zip(map(str, FAR_K), _floor(known, np.array(FAR_K)).tolist(), strict=True)) if known else None,
        **{name: _plain(each) for name, each in found.items() if each is not None},
    )


def _floor(known: list[Known | None], k: Ints) -> Floats:
    """Mean over the prompts of the lower bound that their known answers give: float64 [K]."""
    floors = [np.zeros(len(k)) if each is None else leak_floor(each.log_probs, k, each.scores) for each in known]
    return np.asarray(np.mean(floors, axis=0))


def _plain(values: Floats) -> list[Any]:
    """A list with None for what is not known: JSON has no NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]
