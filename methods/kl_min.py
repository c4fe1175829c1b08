"""KL minimisation: ascent on the forget set, held to the target model's distribution on the retain set.

    L = - gamma * mean NLL on D_f + alpha * mean over labelled tokens of D_r of KL(p_ref || p_theta)

Source: TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import UnlearnBatch, Weighted, mean_nll, token_logits, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class KLMin(Weighted):
    """gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model"})

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        return -mean_nll(model, batch.forget)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch
        from torch.nn.functional import kl_div

        assert batch.retain is not None
        with torch.no_grad():
            reference_BTV = token_logits(batch.reference, batch.retain).logits_BTV.float().log_softmax(dim=2)
        logits = token_logits(model, batch.retain)
        logprob_BTV = logits.logits_BTV.float().log_softmax(dim=2)
        kl_BT = kl_div(logprob_BTV, reference_BTV, reduction="none", log_target=True).sum(dim=2)
        return token_mean(kl_BT, logits.mask, batch.retain)
