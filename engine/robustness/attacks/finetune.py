"""Fine-tuning on something harmless, as people do with a model that they were given: unlearning can wash out.

    mean NLL on the retain set, or on a file, for `steps` steps

Source: benign fine-tuning undoes unlearning, arXiv 2406.13356.
"""

from __future__ import annotations

from pydantic import Field

from benchmarks.base import Benchmark, Example
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.source import ModelSource
from engine.robustness.base import ModelAttack, Setting
from engine.robustness.training import fine_tuning, settings_of
from engine.stages.base import fingerprint_examples, source_of
from engine.train.launch import train


class Finetune(ModelAttack):
    """on: `retain`, or a JSON lines file of {"question", "answer"} or {"text"} rows. steps: optimiser steps. train:
    keys of the experiment's `train` that differ, such as lr, lora or workers."""

    on: str = "retain"
    steps: int = Field(default=100, ge=1)
    train: dict[str, object] = {}

    @property
    def default_label(self) -> str:
        return f"finetune-{self.steps}"

    def done(self, family: str = "") -> str:
        return f"After {self.steps} steps on {'the retain set' if self.on == 'retain' else self.on}"

    def training(self, experiment: Experiment) -> TrainSection:
        return settings_of(experiment, "finetune", self.train, self.steps)

    def check(self, experiment: Experiment, benchmark: Benchmark) -> None:
        forget = {(each.question, each.answer) for each in benchmark.forget}
        if told := sum((each.question, each.answer) in forget for each in self.examples(benchmark)):
            raise UserError(
                f"attacks: finetune: on: {self.on} holds {told} of the forget items, which are judged; leave them "
                "out, or take relearn, which judges the others"
            )
        self.training(experiment)

    def reads(self, benchmark: Benchmark) -> dict[str, str]:
        return {} if self.on == "retain" else {"on": fingerprint_examples(self.examples(benchmark))}

    def examples(self, benchmark: Benchmark) -> list[Example]:
        """What is trained on. UserError where the file cannot be read."""
        if self.on == "retain":
            return benchmark.retain
        from benchmarks.files import read_examples

        return read_examples(self.on, "attacks: finetune: on:")

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource:
        experiment, examples = setting.experiment, self.examples(setting.benchmark)
        job = fine_tuning(experiment, self.training(experiment), model, examples, self.seed)
        return source_of(train(setting.stages, label, job))
