"""Primal-dual unlearning: flat logits on the forget set, the retain loss held below a bound by a dual variable.

    L = gamma * mean over labelled tokens of D_f of (max z - mean z)^2 + lambda (L_r - eps)
    lambda <- max(0, lambda + eta (L_r - eps)) after every step, once the warm-up is over

with z a token's logits over the vocabulary and L_r the mean NLL on D_r, over all workers.
Source: Entesari et al., arXiv 2506.05314.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from methods.base import Loss, Method, UnlearnBatch, token_logits, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class PDU(Method):
    """eps: largest retain loss that is accepted, say the target model's own; eta: step of the dual variable; alpha:
    its first value; warmup_epochs: passes over the forget set before it moves; gamma: weight of the forget loss."""

    eps: float = Field(ge=0)
    eta: float = Field(default=1.0, gt=0)
    gamma: float = 1.0
    alpha: float = Field(default=1.0, ge=0)
    warmup_epochs: float = Field(default=5.0, ge=0)

    def initial_state(self) -> dict[str, float]:
        return {"lambda": self.alpha}

    def next_state(self, state: dict[str, float], losses: Mapping[str, float], epoch: float) -> dict[str, float]:
        if epoch <= self.warmup_epochs:
            return state
        return {"lambda": max(0.0, state["lambda"] + self.eta * (losses["retain"] - self.eps))}

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        logits = token_logits(model, batch.forget)
        logits_BTV = logits.logits_BTV.float()
        peak_BT = (logits_BTV.amax(dim=2) - logits_BTV.mean(dim=2)).square()
        return token_mean(peak_BT, logits.mask, batch.forget)

    def weights(self, state: Mapping[str, float]) -> tuple[float, float]:
        return self.gamma, (state or self.initial_state())["lambda"]

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        loss = super().loss(model, batch)
        return loss._replace(total=loss.total - self.weights(batch.state)[1] * self.eps)
