"""ILU, invariant unlearning: unlearn so that fine-tuning on other data has nothing to gain, by an IRM penalty.

    L = the base method's loss, with L_r + lambda_invariance * (d/dw NLL(w z) at w = 1)^2 in the place of L_r

with z the logits and NLL the mean over the labelled tokens of a micro-batch of D_r, so that d/dw NLL is the mean of
sum over v of p_v z_v - z_y.

Our reading: the paper's penalty (IRMv1) is on a fine-tuning set of its own, such as GSM8K, that has nothing to do with
what is forgotten; here it is on D_r, the data at hand that fine-tuning resembles, and is weighted with L_r.
Source: Wang et al., arXiv 2506.01339; IRMv1: Arjovsky et al., arXiv 1907.02893.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import TokenBatch, UnlearnBatch, token_logits
from methods.wrapper import OwnAndBase, Wrapper

if TYPE_CHECKING:
    from torch import Tensor


class ILU(Wrapper):
    """base: a method's name and hyperparameters. lambda_invariance: weight of the penalty beside the retain loss."""

    needs: ClassVar[frozenset[str]] = OwnAndBase("retain")  # type: ignore[assignment]
    lambda_invariance: float = Field(default=0.1, ge=0)

    @property
    def layers(self) -> None:
        return None  # the penalty is of the logits

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.retain is not None
        penalty = slope_of_scale(model, batch.retain).square()
        return self.base_method().retain_loss(model, batch) + self.lambda_invariance * penalty


def slope_of_scale(model: Any, batch: TokenBatch) -> Tensor:
    """Derivative of the mean NLL by a factor on all logits, at 1: a scalar."""
    logits = token_logits(model, batch)
    logits_BTV = logits.logits_BTV.float()
    expected_BT = (logits_BTV.softmax(dim=2) * logits_BTV).sum(dim=2)
    labelled_BT = logits_BTV.gather(2, logits.labels_BT.clamp(min=0).unsqueeze(2)).squeeze(2)
    return ((expected_BT - labelled_BT) * logits.mask).sum() / logits.mask.sum()
