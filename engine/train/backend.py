"""What the training loop asks of whoever moves the weights: plain torch on one worker, DeepSpeed on many.

Losses come in, weights move. Knows nothing of data or of methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from engine.models.source import ModelSource
    from engine.train.two_gradients import TwoGradients, Weights


class Backend(Protocol):
    """Model, optimizer and the way from a loss to a step.

    model: what a loss is computed through, as wrapped as the backend has it; module: the Hugging Face model in it, for
    losses whose gradients are taken apart. autocast: to compute losses in. apart: gathers the two gradients of a step.
    """

    model: Any  # a torch module, DeepSpeed's engine or peft's model
    module: Any
    device: str
    apart: TwoGradients

    @property
    def autocast(self) -> AbstractContextManager[Any]: ...

    def accumulate(self, total: Tensor, last: bool, lr: float) -> float:
        """Add one micro-batch's gradient; after the last of a step, clip and move the weights. Returns the gradient's
        norm after the last, else 0; where that is not finite the weights stay as they are."""
        ...

    def moved(self, radius: float) -> AbstractContextManager[None]:
        """While it lasts, the weights stand `radius` further along the forget gradient in `apart`, which is dropped: it
        is to be taken again there."""
        ...

    def step_apart(self, lr: float, weights: Weights) -> float:
        """Clip and move the weights along the combination of the gradients in `apart`; returns its norm.

        weights: from the inner products <g_f, g_f> and <g_f, g_r> of the step's gradients over all parameters, the
        weights of g_f and g_r.
        """
        ...

    def finite(self) -> bool:
        """Whether every weight that this worker trains and holds is a number."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state so that `load` continues to the same bits."""
        ...

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> None:
        """Write the weights, or the adapter alone, as safetensors in Hugging Face's layout."""
        ...

    def frozen(self, source: ModelSource) -> Any:
        """The target model, to read hidden states or logits of: the adapter switched off, or a second model."""
        ...


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
