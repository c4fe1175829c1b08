"""Accuracy on multiple-choice questions, from the probability of each option.

A benchmark's questions and a model come in, the share of right ones by group comes out. Nothing is sampled.
"""

from __future__ import annotations

import numpy as np

from benchmarks.base import Benchmark, Example
from engine.config.experiment import Experiment
from engine.evaluation.jobs import choices_job
from engine.models.source import ModelSource
from engine.stages.base import Stages
from engine.stages.likelihood import read_likelihoods


def accuracy(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
) -> dict[str, float]:
    """Share of each group's multiple-choice questions whose right option is the likeliest: sum of its log-probabilities
    after the prompt without template, lm-evaluation-harness's convention. In [0, 1]; empty without questions."""
    choices = benchmark.choices
    if not choices:
        return {}
    pairs = [(choice.prompt, option) for choice in choices for option in choice.options]
    examples = [Example(str(index), *pair) for index, pair in enumerate(pairs)]
    stage = stages.run(f"{label} choices", choices_job(experiment, model, examples))
    likelihoods = read_likelihoods(stage.path, examples).of(pairs)
    logprobs = iter([sum(option.logprobs) for option in likelihoods])
    right: dict[str, list[bool]] = {}
    for choice in choices:
        likeliest = int(np.argmax([next(logprobs) for _ in choice.options]))
        right.setdefault(choice.group, []).append(likeliest == choice.answer)
    return {group: float(np.mean(hits)) for group, hits in right.items()}
