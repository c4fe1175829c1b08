"""PALU: flat logits where each forget answer begins, among the tokens that the target model finds likeliest there.

    L = gamma * mean over D_f of the mean over the answer's first `prefix` tokens of (1/K) sum over V_K of (z_v - c)^2
        + alpha * mean NLL on D_r

with z the logits, V_K the K tokens with the highest logits of the frozen target model at that place, and c the mean of
those logits (where `c` is None).

Read from summaries of the paper, not from the paper itself. There another model marks the sensitive spans of an answer;
the first tokens of each are flattened and the tokens outside of them are held by a KL term. Our reading: each answer is
one span, which leaves no token to that term.
Source: Zhai et al., arXiv 2601.03190.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import IGNORED, UnlearnBatch, Weighted, token_logits

if TYPE_CHECKING:
    from torch import Tensor


class PALU(Weighted):
    """prefix: first tokens of each answer at which logits are flattened; k: how many logits; c: what all are to be;
    gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model"})
    prefix: int = Field(default=3, ge=1)
    k: int = Field(default=50, ge=2)
    c: float | None = None

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        assert batch.forget is not None
        with torch.no_grad():
            reference_BTV = token_logits(batch.reference, batch.forget).logits_BTV.float()
            highest = reference_BTV.topk(min(self.k, reference_BTV.shape[2]), dim=2)
            wanted_BT1 = highest.values.mean(dim=2, keepdim=True)
            if self.c is not None:
                wanted_BT1 = torch.full_like(wanted_BT1, self.c)
        logits_BTV, labels_BT = token_logits(model, batch.forget)
        labelled_BT = labels_BT != IGNORED
        first_BT = (labelled_BT & (labelled_BT.cumsum(dim=1) <= self.prefix)).float()
        spread_BT = (logits_BTV.float().gather(2, highest.indices) - wanted_BT1).square().mean(dim=2)
        return ((spread_BT * first_BT).sum(dim=1) / first_BT.sum(dim=1)).mean()
