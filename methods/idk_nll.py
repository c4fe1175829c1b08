"""Fine-tuning on refusals: answer the forget questions with "I don't know" and its variants.

    L = gamma * mean NLL of the refusals to D_f's questions + alpha * mean NLL on D_r

Source: TOFU, arXiv 2401.06121 (preference optimisation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import UnlearnBatch, Weighted, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class IdkNLL(Weighted):
    """gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "alternate"})

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.alternate is not None
        return mean_nll(model, batch.alternate)
