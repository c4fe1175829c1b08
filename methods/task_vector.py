"""Task vector negation: train further on the forget set, then walk the other way in the space of weights.

    theta = theta_target - a (theta_reinforced - theta_target)

with theta_reinforced the target model fine-tuned further on D_f (mean NLL).
Source: Ilharco et al., arXiv 2212.04089; MUSE, arXiv 2407.06460.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import Method, UnlearnBatch, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class TaskVector(Method):
    """a: how far to walk, in lengths of the task vector (1 to 5)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    a: float = 1.0

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        return mean_nll(model, batch.forget)

    def edited(self, trained: Tensor, target: Tensor) -> Tensor:
        return target - self.a * (trained - target)
