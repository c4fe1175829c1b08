"""CE-U: cross-entropy towards the model's own distribution without the forget token.

    L = mean over labelled tokens of D_f, the first of each answer skipped, of
        CE(softmax(z with z_y = -inf) held constant, z_theta)

Source: Yang, arXiv 2503.01224.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import IGNORED, Method, UnlearnBatch, token_logits

if TYPE_CHECKING:
    from torch import Tensor


class CEU(Method):
    """skip: first tokens of each answer that are left alone."""

    needs: ClassVar[frozenset[str]] = frozenset()
    skip: int = Field(default=1, ge=0)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        logits_BTV, labels_BT = token_logits(model, batch.forget)
        logits_BTV = logits_BTV.float()
        labelled_BT = labels_BT != IGNORED
        kept_BT = labelled_BT & (labelled_BT.cumsum(dim=1) > self.skip)
        token_BT1 = labels_BT.clamp(min=0).unsqueeze(2)
        wanted_BTV = logits_BTV.detach().scatter(2, token_BT1, float("-inf")).softmax(dim=2)
        cross_entropy_BT = -(wanted_BTV * logits_BTV.log_softmax(dim=2)).sum(dim=2)
        # The mean number of kept tokens over the step's micro-batches: their weights know the labelled ones, and each
        # micro-batch skips as many.
        labelled, skipped = labelled_BT.sum(), (labelled_BT & ~kept_BT).sum()
        kept = (labelled / batch.forget.weight - skipped).clamp(min=1)
        return (cross_entropy_BT * kept_BT).sum() / kept
