"""UNDIAL: self-distillation from the target model with the forget token's logit lowered.

    L = gamma * mean over labelled tokens of D_f of CE(softmax(z_ref - beta * onehot(y)), z_theta)
        + alpha * mean NLL on D_r

Source: Dong et al., arXiv 2402.10052.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import UnlearnBatch, Weighted, token_logits, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class Undial(Weighted):
    """beta: how far the logit is lowered; gamma, alpha: weights of the forget and of the retain loss (0: not taken)."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model"})
    beta: float = 10.0
    alpha: float = 0.0

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        assert batch.forget is not None
        with torch.no_grad():
            reference_BTV, labels_BT = token_logits(batch.reference, batch.forget)
            token_BT1 = labels_BT.clamp(min=0).unsqueeze(2)  # -100 is no token; such positions are masked below
            lowered_BT1 = torch.full_like(token_BT1, -self.beta, dtype=torch.float32)
            wanted_BTV = reference_BTV.float().scatter_add(2, token_BT1, lowered_BT1).softmax(dim=2)
        logits = token_logits(model, batch.forget)
        cross_entropy_BT = -(wanted_BTV * logits.logits_BTV.float().log_softmax(dim=2)).sum(dim=2)
        return token_mean(cross_entropy_BT, logits.mask, batch.forget)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        return super().retain_loss(model, batch) if self.alpha else torch.zeros(())
