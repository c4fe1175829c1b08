"""What an experiment trains and samples, before any of it is done: the plan's parts.

An experiment with its protocol and its benchmark come in; Trainings and numbers of samples and models come out. Knows
nothing of bytes, machines or time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.config.sections import MethodSection, TrainSection

GRADIENTS = 3  # that a step along two gradients holds: the two and their combination


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of the experiment: its settings, forward passes held at once, whether a frozen model stands beside
    it, its steps, how often it is trained (RULE's rounds), whether its optimizer's state is kept, and how many numbers
    more a trained weight each worker holds whole (two gradients, weights to come back to), the decoder layers that
    its loss runs (None: all, and the head), and whether the target model's log-probabilities are taken before it."""

    label: str
    settings: TrainSection
    graphs: int = 1
    reference: bool = False
    steps: int = 0
    times: int = 1
    keeps: bool = False
    copies: int = 0
    layers: int | None = None
    logprobs: bool = False


def trainings(experiment: Experiment, benchmark: Benchmark) -> list[Training]:
    """All trainings of an experiment, the fine-tuning of target and retain model first."""
    found = []
    finetune = experiment.finetune_section
    if finetune is not None:
        sets = {"target": [*benchmark.finetune_forget, *benchmark.finetune_retain], "retain": benchmark.finetune_retain}
        found = [Training(name, finetune, steps=_steps(finetune, len(each))) for name, each in sets.items()]
    return found + [_of_method(experiment, each, len(benchmark.forget)) for each in experiment.methods]


def attack_trainings(experiment: Experiment, sections: Sequence[TrainSection]) -> list[Training]:
    """The trainings of attacks, each made on every model of the experiment's table."""
    times = models_evaluated(experiment)
    return [Training("an attack", section, steps=section.steps or 0, times=times) for section in sections]


def _of_method(experiment: Experiment, section: MethodSection, examples: int) -> Training:
    from methods import make_method

    method = make_method(section.method)
    needs, settings = method.trained.needs, experiment.train_section(section)
    times = method.trainings * len(experiment.requests or (1,))
    graphs = 1 + ("retain" in needs) + ("alternate" in needs)
    return Training(
        experiment.label(section),
        settings,
        graphs,
        reference="reference_model" in needs,
        steps=_steps(settings, examples),
        times=times,
        keeps=method.procedure == "rounds",
        copies=(GRADIENTS if "two_gradients" in needs else 0) + (1 if method.trained.radius else 0),
        layers=method.trained.layers,
        logprobs="reference_logprob" in needs,
    )


def _steps(settings: TrainSection, examples: int) -> int:
    return settings.steps or math.ceil(settings.epochs * examples / settings.batch_size)


def model_samples(experiment: Experiment, benchmark: Benchmark) -> int:
    """Samples drawn from one model, over all decodings."""
    leaking = sum(probe.group.startswith("forget") for probe in benchmark.probes)
    drawn = [each for each in experiment.sampling.decoding or () if each.temperature > 0]
    return leaking * (experiment.sampling.n or 1) * len(drawn) + len(benchmark.probes)


def models_evaluated(experiment: Experiment) -> int:
    """Models of the experiment's table."""
    model, requests = experiment.model, len(experiment.requests or (1,))
    controls = sum(bool(each.hyperparameters.get("control")) for each in experiment.methods)
    return (
        1 + (model.retain is not None or model.finetune is not None) + requests * (len(experiment.methods) + controls)
    )
