"""How much work each model of an experiment is: what the time left of a run is told from.

An experiment with its protocol, its benchmark and the names of its models come in; out come, by model, the sequences
that are trained on, the tokens that are sampled at most, the answers and the pairs whose probability is taken, as
engine.stages counts them (Stage.amount). Knows nothing of how long anything takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from benchmarks.base import Benchmark, is_leak_group
from engine.cluster.progress import TRAINING
from engine.config.experiment import Experiment
from engine.config.sections import MethodSection
from engine.evaluation.benchmark_metrics import likelihood_examples, wants_likelihoods
from engine.pipeline.planned_parts import Training, model_samples, trainings
from engine.stages.known_answers import AnswersJob
from engine.stages.likelihood import GRADIENT_PAIRS, LikelihoodJob
from engine.stages.sample import SampleJob


def planned_work(experiment: Experiment, benchmark: Benchmark, models: Sequence[str]) -> dict[str, dict[str, float]]:
    """By name of the model, amounts of work by kind."""
    tokens = experiment.sampling.max_new_tokens or 1
    requests = len(experiment.requests or (1,))
    by_label = {each.label: each for each in trainings(experiment, benchmark)}
    sections = {experiment.label(each): each for each in experiment.methods}
    found = {}
    for name in models:
        label = re.sub(r"-request\d+$", "", name)
        method = f"rule-{label.removesuffix('-control')}" if label.endswith("-control") else label
        amounts = evaluation_work(experiment, benchmark)
        if method in by_label:
            amounts["train"] = _sequences(by_label[method], sections.get(method), requests)
        if method in sections and label == method:
            amounts["sample"] += _rounds(sections[method], len(benchmark.forget) / requests) * tokens
        found[name] = amounts
    return found


def likenesses(experiment: Experiment) -> dict[str, tuple[str, float]]:
    """By what the time of a kind of work is guessed before any of it was seen: a training goes through its tokens
    forwards and backwards, which takes three times as long as reading them; sequences count as half of the longest."""
    training = experiment.finetune_section or experiment.train
    return {
        SampleJob.title: (TRAINING, 1 / (3 * max(1.0, training.max_length / 2))),
        AnswersJob.title: (SampleJob.title, float(experiment.sampling.max_new_tokens or 1)),
        LikelihoodJob.title: (TRAINING, 1 / 3),
    }


def evaluation_work(experiment: Experiment, benchmark: Benchmark) -> dict[str, float]:
    """Amounts of work by kind of one model's evaluation: what is left once it is made."""
    tokens = experiment.sampling.max_new_tokens or 1
    amounts = {"sample": float(model_samples(experiment, benchmark) * tokens)}
    return amounts | _probabilities(experiment, benchmark)


def _probabilities(experiment: Experiment, benchmark: Benchmark) -> dict[str, float]:
    """What is taken of each model beside samples, where it is at hand: known answers, likelihoods."""
    sampling = experiment.sampling
    if experiment.model.endpoint is not None or sampling.tensor_parallel > 1:
        return {}
    sampled = [each for each in sampling.decoding or () if each.temperature > 0]
    leaking = sum(is_leak_group(probe.group) for probe in benchmark.probes)
    pairs, gradients = likelihood_examples(benchmark) if wants_likelihoods(benchmark) else ((), frozenset[str]())
    options = sum(len(choice.options) for choice in benchmark.choices)
    amounts = {
        AnswersJob.title: float(leaking * (experiment.leak.beams + 1) * len(sampled)),
        LikelihoodJob.title: float(len(pairs) + (GRADIENT_PAIRS - 1) * len(gradients) + options),
    }
    return {kind: amount for kind, amount in amounts.items() if amount}


def _sequences(training: Training, section: MethodSection | None, requests: int) -> float:
    """Sequences of the trainings that make a model: of RULE, and its control, of the first one and of all rounds.
    requests: parts of the forget set, which epochs are over."""
    settings, steps = training.settings, training.steps
    if section is None:
        return float(steps * settings.batch_size)
    from methods import make_method

    method = make_method(section.method)
    if settings.steps is None:
        steps = math.ceil(steps / requests)
    steps += getattr(method, "rounds", 0) * (getattr(method, "steps", None) or steps)
    retain = (settings.retain_batch_size or settings.batch_size) if training.graphs > 1 else 0
    return float(steps * (settings.batch_size + retain))


def _rounds(section: MethodSection, prompts: float) -> float:
    """Samples that RULE's rounds draw at most."""
    from methods import make_method

    method = make_method(section.method)
    return prompts * getattr(method, "samples", 0) * getattr(method, "rounds", 0)
