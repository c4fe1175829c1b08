"""The two gradients of a step, of its forget and of its retain loss, for methods that combine them (methods/base.py).

Losses of micro-batches come in, one gradient comes out. Knows nothing of optimisers, nor whether the parameters are
sharded: whoever moves them has them gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Weights = Callable[[float, float], tuple[float, float]]


class TwoGradients:
    """The forget and the retain gradient of a step, gathered over its micro-batches and then combined."""

    def __init__(self, parameters: list[Tensor], micro_batches: int) -> None:
        """micro_batches: of a step, whose mean each gradient is."""
        self.parameters, self.micro_batches = parameters, micro_batches
        self.forget: list[Tensor] = []
        self.retain: list[Tensor] = []

    def add(self, forget: Tensor, retain: Tensor) -> None:
        """Add the gradients of one micro-batch's two losses, which come from separate forward passes."""
        self.add_forget(forget)
        self.retain = self._grown(self.retain, retain) or [
            gradient.new_zeros(gradient.shape) for gradient in self.forget
        ]

    def add_forget(self, forget: Tensor) -> None:
        self.forget = self._grown(self.forget, forget)

    def _grown(self, kept: list[Tensor], loss: Tensor) -> list[Tensor]:
        """Gradients with those of a loss added; the loss of a set that the method does not read has none."""
        import torch

        if not loss.requires_grad:
            return kept
        added = torch.autograd.grad(loss / self.micro_batches, self.parameters, materialize_grads=True)
        return [a + b for a, b in zip(kept, added, strict=True)] if kept else list(added)

    def move(self, radius: float) -> list[Tensor]:
        """Move the parameters by `radius` along the forget gradient and drop it; returns what they were."""
        import torch

        before = [parameter.detach().clone() for parameter in self.parameters]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in self.forget))
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, self.forget, strict=True):
                parameter.add_(gradient, alpha=radius / norm if norm > 0 else 0.0)
        self.forget = []
        return before

    def restore(self, before: list[Tensor]) -> None:
        """Put the parameters back, to the same bits."""
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)

    def combined(self, weights: Weights) -> list[Tensor]:
        """The step's gradient, parameter by parameter; the next step begins with none."""
        forget_forget = sum(float(gradient.double().square().sum()) for gradient in self.forget)
        pairs = list(zip(self.forget, self.retain, strict=True))
        of_forget, of_retain = weights(forget_forget, sum(float((f * r).double().sum()) for f, r in pairs))
        self.forget, self.retain = [], []
        return [of_forget * f + of_retain * r for f, r in pairs]
