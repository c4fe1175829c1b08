"""The smallest weights set to zero, layer by layer, as models are made smaller for serving.

    w = 0 for the share `sparsity` of each linear layer's weights that are smallest in size; the output head stays whole

Source: magnitude pruning, Han et al. 2015 (arXiv 1506.02626), by torch.nn.utils.prune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from engine.models.source import ModelSource
from engine.robustness.base import ModelAttack, Setting
from engine.robustness.weights import WeightsJob, linear_weights
from engine.stages.base import source_of

if TYPE_CHECKING:
    from torch import nn


class Prune(ModelAttack):
    """sparsity: share of the weights that are set to zero, in (0, 1)."""

    sparsity: float = Field(default=0.3, gt=0, lt=1)

    @property
    def default_label(self) -> str:
        return f"prune-{self.sparsity:g}"

    def done(self, family: str = "") -> str:
        return f"With {100 * self.sparsity:g}% of its weights set to zero"

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource:
        job = WeightsJob("prune", self, model, portable=setting.experiment.portable)
        return source_of(setting.stages.run(label, job))

    def change(self, model: nn.Module, other: nn.Module | None) -> None:
        from torch.nn.utils.prune import L1Unstructured

        smallest = L1Unstructured(self.sparsity)  # type: ignore[no-untyped-call]
        for weight in linear_weights(model).values():
            weight.copy_(smallest.prune(weight))  # type: ignore[no-untyped-call]
