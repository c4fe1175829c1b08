"""leak@k beyond the number of samples, by the estimators that an experiment names: there is no unbiased one.

Evaluations of the model and of the target model come in; plain records come out, each with its interval and warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.evaluation.evaluate import Evaluation, sample_job
from engine.leak.extrapolation import leak_beyond_n
from engine.leak.importance_weights import reweighted_leak
from engine.models.source import ModelSource
from engine.stages.base import Stages
from engine.stages.sample_endpoint import Endpoint
from engine.stages.sample_logprobs import RelogJob, read_relog
from engine.stages.score import group_scores


def beyond(
    stages: Stages,
    experiment: Experiment,
    benchmark: Benchmark,
    label: str,
    model: ModelSource,
    evaluation: Evaluation,
    target: tuple[ModelSource, Evaluation] | None,
) -> list[dict[str, Any]]:
    """target: another model and its evaluation, to take samples from; None for the target model itself. Gives
    {"estimator", "k", "leak", "low", "high", "warning"} for each estimator in leak.beyond, on the leak group by the
    core metric under the first sampled decoding; lists of None where the estimator refuses, `warning` says why."""
    section, decoding = experiment.leak.beyond, _first_sampled(experiment)
    if section is None or decoding is None:
        return []
    k, found = sorted(set(section.k)), []
    for estimator in dict.fromkeys(section.estimators):
        record: dict[str, Any] = {"estimator": estimator, "k": k}
        try:
            if estimator == "beta-binomial":
                scores = _scores(stages, benchmark, evaluation, decoding.name)
                fitted = leak_beyond_n(scores, np.array(k), experiment.leak.confidence, experiment.seed)
            else:
                fitted = _by_importance(stages, experiment, benchmark, label, model, target, np.array(k))
        except ValueError as reason:
            nothing = dict.fromkeys(("leak", "low", "high"), [None] * len(k))
            found.append(record | nothing | {"warning": f"refused: {reason}"})
            continue
        numbers = {name: getattr(fitted, name).tolist() for name in ("leak", "low", "high")}
        found.append(record | numbers | {"warning": fitted.warning})
    return found


def _by_importance(
    stages: Stages,
    experiment: Experiment,
    benchmark: Benchmark,
    label: str,
    model: ModelSource,
    target: tuple[ModelSource, Evaluation] | None,
    k: Any,
) -> Any:
    """leak@k of the model from the target model's samples, by how likely the model is to give them."""
    decoding = _first_sampled(experiment)
    if target is None or decoding is None:
        raise ValueError("there is no other target model to take samples from")
    source, drawn = target
    if isinstance(model, Endpoint) or isinstance(source, Endpoint):
        raise ValueError("a model behind a server gives no probabilities of given answers")
    if decoding.top_p < 1 or decoding.top_k is not None:
        raise ValueError("the target model's samples must be drawn at top_p 1 without top_k")
    name = decoding.name
    generations = str(stages.store.root / drawn.stages[f"generations {name}"])
    log_probs = []
    for name_of, each in (("target", source), (label, model)):
        job = sample_job(experiment, benchmark, each, decoding)
        if experiment.sampling.adaptive is not None:
            raise ValueError("importance weights need the same n of every prompt, not sampling.adaptive")
        relog = RelogJob(job, generations, (decoding,))
        stage = stages.run(f"{name_of} on the target model's samples", relog)
        log_probs.append(read_relog(stage.path, relog)[benchmark.protocol.leak_group][0])
    scores = _scores(stages, benchmark, drawn, name)
    return reweighted_leak(scores, log_probs[0], log_probs[1], k, experiment.leak.confidence, experiment.seed)


def _first_sampled(experiment: Experiment) -> Any:
    return next((each for each in experiment.sampling.decoding or () if each.temperature > 0), None)


def _scores(stages: Stages, benchmark: Benchmark, evaluation: Evaluation, decoding: str) -> Any:
    folder = stages.store.root / evaluation.stages[f"scores {decoding} {benchmark.protocol.core_metric}"]
    return group_scores(folder)[benchmark.protocol.leak_group].scores
