"""Weights moved a little towards another model, by default the one before unlearning.

    theta = (1 - alpha) theta_unlearned + alpha theta_other

How little brings the knowledge back tells how near it still is. The retain model is moved as far: what it then leaks is
what the other model brought along. Source: model soups and task vectors, arXiv 2203.05482, 2212.04089.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.models.source import ModelSource, model_source
from engine.robustness.base import ModelAttack, Setting
from engine.robustness.weights import WeightsJob
from engine.stages.base import source_of

if TYPE_CHECKING:
    from torch import nn


class Interpolate(ModelAttack):
    """with: `target`, or a model folder or hub name of the same architecture. alpha: share of the way, in (0, 1)."""

    other: str = Field(default="target", alias="with")
    alpha: float = Field(default=0.2, gt=0, lt=1)

    @property
    def default_label(self) -> str:
        return f"interpolate-{self.alpha:g}"

    def done(self, family: str = "") -> str:
        where = "the target model" if self.other == "target" else self.other
        return f"Moved {100 * self.alpha:g}% of the way to {where}"

    def check(self, experiment: Experiment, benchmark: Benchmark) -> None:
        if self.other == "target" and not experiment.methods:
            raise UserError(
                "attacks: interpolate: nothing is unlearned here: the model before it is unknown; give it by `with`"
            )
        if self.other != "target":
            model_source(self.other, where="attacks: interpolate: with", identified=False)

    def reads(self, benchmark: Benchmark) -> dict[str, str]:
        if self.other == "target":
            return {}
        return {"with": model_source(self.other, where="attacks: interpolate: with").identity}

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource | None:
        if self.other == "target":
            other = setting.target
        else:
            other = model_source(self.other, where="attacks: interpolate: with")
        if other is None or other.identity == model.identity:
            return None
        job = WeightsJob("interpolate", self, model, other, setting.experiment.portable)
        return source_of(setting.stages.run(label, job))

    def change(self, model: nn.Module, other: nn.Module | None) -> None:
        assert other is not None
        there = dict(other.named_parameters())
        for name, parameter in model.named_parameters():
            if name not in there or there[name].shape != parameter.shape:
                raise UserError(f"attacks: interpolate: with: {self.other} is of another architecture ({name} differs)")
            parameter.data.mul_(1 - self.alpha).add_(there[name].data, alpha=self.alpha)
