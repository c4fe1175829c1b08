"""Fine-tuning on refusals: answer the forget questions with "I don't know" and its variants.

    L = gamma * mean NLL of the refusals to D_f's questions + alpha * mean NLL on D_r

Source: TOFU, arXiv 2401.06121 (preference optimisation).
"""

from __future__ import annotations

from typing import Any, ClassVar

from methods.base import Loss, Method, UnlearnBatch, mean_nll


class IdkNLL(Method):
    """gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "alternate"})
    gamma: float = 1.0
    alpha: float = 1.0

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.alternate is not None
        assert batch.retain is not None
        forget = mean_nll(model, batch.alternate)
        retain = mean_nll(model, batch.retain)
        return Loss(self.gamma * forget + self.alpha * retain, forget, retain)
