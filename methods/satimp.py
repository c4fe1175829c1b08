"""SatImp: ascent weighted by saturation and importance of each token.

    L = - gamma * mean(p_t^b1 (1 - p_t)^b2 l_t) on D_f + alpha * mean NLL on D_r, the weights held constant

with l_t a token's cross-entropy and p_t = exp(-l_t).
Source: Yang et al., arXiv 2505.11953.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from methods.base import UnlearnBatch, Weighted, token_loss, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class SatImp(Weighted):
    """b1: weight of what is still known; b2: weight of what is surprising; gamma, alpha: of forget and retain loss."""

    b1: float = Field(default=5.0, ge=0)
    b2: float = Field(default=1.0, ge=0)
    gamma: float = 0.1

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        nll_BT, mask_BT = token_loss(model, batch.forget)
        p_BT = (-nll_BT.detach()).exp()
        weight_BT = p_BT**self.b1 * (1 - p_BT) ** self.b2
        return -token_mean(weight_BT * nll_BT, mask_BT, batch.forget)
