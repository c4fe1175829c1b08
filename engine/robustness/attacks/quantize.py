"""Weights rounded to 4 or 8 bits, as models are for serving: rounding can undo small changes that unlearning made.

    nf4    in blocks of `block` weights: weight / largest of the block, to the nearest of 16 levels (QLoRA)
    int8   in rows: weight / largest of the row * 127, to whole numbers
    int4   in groups of `block` weights of a row: 16 evenly spaced levels from the smallest to the largest

Every linear layer but the output head is rounded and stored again in float32, so that the model computes with exactly
the values of the scheme ("weight-only quantisation"). Works on CPUs, for any device that the model is run on after.
By these few lines and no library: transformers imports torchao, where it is installed, in every process that loads a
model, which takes seconds. Sources: quantisation brings back what was unlearned, arXiv 2410.16454; nf4:
arXiv 2305.14314; int8 by rows as LLM.int8()'s weights, arXiv 2208.07339.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from engine.models.source import ModelSource
from engine.robustness.base import ModelAttack, Setting
from engine.robustness.weights import WeightsJob, linear_weights
from engine.stages.base import source_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# The levels of NF4: quantiles of the normal distribution, scaled to [-1, 1] (arXiv 2305.14314, appendix E).
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Quantize(ModelAttack):
    """scheme: nf4, int8 or int4. block: weights that share a scale (nf4 default 64, int4 default 32; int8: a row)."""

    scheme: Literal["nf4", "int8", "int4"] = "nf4"
    block: int | None = Field(default=None, ge=2)

    @property
    def default_label(self) -> str:
        return f"quantize-{self.scheme}" + (f"-b{self.block}" if self.block else "")

    @model_validator(mode="after")
    def _rows_have_no_blocks(self) -> Quantize:
        if self.scheme == "int8" and self.block is not None:
            raise ValueError("int8 has a scale for each row; leave block out")
        return self

    def done(self, family: str = "") -> str:
        return f"With weights rounded to {self.scheme}"

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource:
        job = WeightsJob("quantize", self, model, portable=setting.experiment.portable)
        return source_of(setting.stages.run(label, job))

    def change(self, model: nn.Module, other: nn.Module | None) -> None:
        for weight in linear_weights(model).values():
            weight.copy_(self.rounded(weight.contiguous()))

    def rounded(self, weight: Tensor) -> Tensor:
        """The weights [out, in] rounded to the scheme's grid, in their own precision."""
        if self.scheme == "nf4":
            return _nf4(weight, self.block or 64)
        return _int8(weight) if self.scheme == "int8" else _int4(weight, self.block or 32)


def _nf4(weight: Tensor, block: int) -> Tensor:
    import torch

    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = _no_zero(padded.abs().amax(dim=1, keepdim=True))
    levels = torch.tensor(NF4_LEVELS, dtype=weight.dtype, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(padded / scale, between)]
    return (nearest * scale).flatten()[: len(flat)].view_as(weight)


def _int8(weight: Tensor) -> Tensor:
    scale = _no_zero(weight.abs().amax(dim=1, keepdim=True) / 127)
    return (weight / scale).round().clamp(-127, 127) * scale


def _int4(weight: Tensor, group: int) -> Tensor:
    """Zero is one of the levels; a row that groups do not divide is one group."""
    columns = weight.shape[1]
    grouped = weight.view(-1, group if columns % group == 0 else columns)
    low, high = grouped.amin(dim=1, keepdim=True).clamp_max(0), grouped.amax(dim=1, keepdim=True).clamp_min(0)
    scale = _no_zero((high - low) / 15)
    zero = (-low / scale).round().clamp(0, 15)
    level = ((grouped / scale).round() + zero).clamp(0, 15)
    return ((level - zero) * scale).view_as(weight)


def _no_zero(scale: Tensor) -> Tensor:
    """The scales, the smallest number in place of 0: weights that are all 0 stay so."""
    import torch

    return scale.clamp_min(torch.finfo(scale.dtype).tiny)
