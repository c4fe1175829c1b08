"""Fine-tuning on a few of the forgotten items, then leak@k of the others: were they hidden or gone?

    mean NLL on a random `share` of the forget set for `steps` steps; only items that were not shown are judged

The retain model is taught the same items: what it then gives away of the others is style and chance.
Source: relearning attacks, arXiv 2406.13356, 2402.16835.
"""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from benchmarks.base import Benchmark, Example, Probe, is_leak_group
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.source import ModelSource
from engine.robustness.base import ModelAttack, Setting
from engine.robustness.training import fine_tuning, settings_of
from engine.stages.base import source_of
from engine.train.launch import train


class Relearn(ModelAttack):
    """share: of the forget set that is shown, in (0, 1). steps: optimiser steps. train: keys of the experiment's
    `train` that differ, such as lr, lora or workers."""

    judges: ClassVar[str] = "the others"
    share: float = Field(default=0.1, gt=0, lt=1)
    steps: int = Field(default=50, ge=1)
    train: dict[str, object] = {}

    @property
    def default_label(self) -> str:
        return f"relearn-{self.share:g}"

    def done(self, family: str = "") -> str:
        return f"After {self.steps} steps on {100 * self.share:g}% of the facts"

    def training(self, experiment: Experiment) -> TrainSection:
        return settings_of(experiment, "relearn", self.train, self.steps)

    def check(self, experiment: Experiment, benchmark: Benchmark) -> None:
        self.training(experiment)
        if not any(probe.group == benchmark.protocol.leak_group for probe in self.judged(benchmark)):
            raise UserError(
                f"attacks: relearn: share {self.share:g} of {len(benchmark.forget)} forget items leaves none to judge; "
                "show fewer"
            )

    def shown(self, benchmark: Benchmark) -> list[Example]:
        """The forget items that the model is taught: at least one, the same for every model."""
        count = max(1, round(self.share * len(benchmark.forget)))
        chosen = random.Random(f"relearn {self.seed}").sample(range(len(benchmark.forget)), count)
        return [benchmark.forget[index] for index in sorted(chosen)]

    def judged(self, benchmark: Benchmark) -> list[Probe]:
        """Every probe but those about an item that is shown, or that says the same as one. UserError where a probe does
        not say what it is about."""
        said = {example.id: (example.question, example.answer) for example in benchmark.forget}
        shown = {said[example.id] for example in self.shown(benchmark)}
        kept = []
        for probe in benchmark.probes:
            about = benchmark.example_of(probe) if is_leak_group(probe.group) else ""
            if about is None:
                raise UserError(
                    f"attacks: relearn: benchmark {benchmark.name} does not say which forget item {probe.id} is about"
                )
            if said.get(about) not in shown:
                kept.append(probe)
        return kept

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource:
        experiment, examples = setting.experiment, self.shown(setting.benchmark)
        job = fine_tuning(experiment, self.training(experiment), model, examples, self.seed)
        return source_of(train(setting.stages, label, job))
