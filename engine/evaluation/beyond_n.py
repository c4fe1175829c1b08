"""leak@k beyond the number of samples, by the estimators that an experiment names: there is no unbiased one.

Evaluations of the model and of the target model come in; BeyondEstimates come out, each with its interval and warning.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.evaluation.evaluate import Evaluation
from engine.evaluation.jobs import on_exact_path, sample_job
from engine.leak.estimator import Ints
from engine.leak.extrapolation import BeyondN, leak_beyond_n
from engine.leak.importance_weights import ReweightedLeak, reweighted_leak
from engine.models.source import ModelSource
from engine.reporting.records import BeyondEstimate
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
) -> list[BeyondEstimate]:
    """An estimate by each of leak.beyond's estimators, on the leak group by the core metric under the first sampled
    decoding. target: another model and its evaluation, to take samples from; None for the target model itself."""
    section, decoding = experiment.leak.beyond, experiment.headline_decoding
    if section is None or decoding is None:
        return []
    ks, estimates = sorted(set(section.k)), []
    for estimator in dict.fromkeys(section.estimators):
        fitted: BeyondN | ReweightedLeak
        try:
            if estimator == "beta-binomial":
                sampling, protocol = evaluation.sampling(decoding.name), benchmark.protocol
                scores = sampling.scores(protocol.core_metric)[protocol.leak_group].scores
                clusters = evaluation.clusters_of(protocol.leak_group)
                fitted = leak_beyond_n(scores, np.array(ks), experiment.leak.confidence, experiment.seed, clusters)
            else:
                fitted = _by_importance(stages, experiment, benchmark, label, model, target, np.array(ks))
        except ValueError as reason:
            unknown: list[float | None] = [None] * len(ks)
            estimates.append(BeyondEstimate(estimator, ks, unknown, unknown, unknown, f"refused: {reason}"))
            continue
        curves = (fitted.leak.tolist(), fitted.low.tolist(), fitted.high.tolist())
        estimates.append(BeyondEstimate(estimator, ks, *curves, fitted.warning))
    return estimates


def _by_importance(
    stages: Stages,
    experiment: Experiment,
    benchmark: Benchmark,
    label: str,
    model: ModelSource,
    target: tuple[ModelSource, Evaluation] | None,
    k: Ints,
) -> ReweightedLeak:
    """leak@k of the model from the target model's samples, by how likely the model is to give them."""
    decoding = experiment.headline_decoding
    if target is None or decoding is None:
        raise ValueError("there is no other target model to take samples from")
    source, drawn = target
    if isinstance(model, Endpoint) or isinstance(source, Endpoint):
        raise ValueError("a model behind a server gives no probabilities of given answers")
    if decoding.top_p < 1 or decoding.top_k is not None:
        raise ValueError("the target model's samples must be drawn at top_p 1 without top_k")
    first = drawn.sampling(decoding.name).rounds[0]
    log_probs = []
    units = sample_job(experiment, benchmark, source, decoding).prompts_a_unit  # as they were drawn
    experiment = on_exact_path(experiment)
    for name_of, judge in (("target", source), (label, model)):
        job = dataclasses.replace(sample_job(experiment, benchmark, judge, decoding), prompts_a_unit=units)
        relog = RelogJob(job, str(first.generations.path), (decoding,))
        stage = stages.run(f"{name_of} on the target model's samples", relog)
        log_probs.append(read_relog(stage.path, relog)[benchmark.protocol.leak_group][0])
    scores = group_scores(first.scores[benchmark.protocol.core_metric].path)[benchmark.protocol.leak_group].scores
    clusters = drawn.clusters_of(benchmark.protocol.leak_group)
    return reweighted_leak(scores, log_probs[0], log_probs[1], k, experiment.leak.confidence, clusters)
