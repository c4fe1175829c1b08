"""Weighted gradient ascent: ascent on the tokens that the model still knows.

    L = - gamma * mean(p_t^beta * l_t) on D_f + alpha * mean NLL on D_r, the weight p_t^beta held constant

with l_t a token's cross-entropy and p_t = exp(-l_t).
Source: Wang et al., arXiv 2502.19301.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from methods.base import UnlearnBatch, Weighted, token_loss, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class WGA(Weighted):
    """beta: how strongly known tokens are preferred; gamma, alpha: weights of the forget and of the retain loss."""

    beta: float = Field(default=1.0, ge=0)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        nll_BT, mask_BT = token_loss(model, batch.forget)
        weight_BT = (-self.beta * nll_BT.detach()).exp()
        return -token_mean(weight_BT * nll_BT, mask_BT, batch.forget)
