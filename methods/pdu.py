"""Primal-dual unlearning: flat logits on the forget set, the retain loss held below a bound by a dual variable.

    L = gamma * mean over labelled tokens of D_f of (max z - mean z)^2 + lambda (L_r - eps)
    lambda <- max(0, lambda + eta (L_r - eps)) after every step, once the warm-up is over

with z a token's logits over the vocabulary and L_r the mean NLL on D_r, over all workers.
Source: Entesari et al., arXiv 2506.05314.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from methods.base import Loss, Method, UnlearnBatch, mean_nll, token_logits, token_mean


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

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.forget is not None
        assert batch.retain is not None
        dual = (batch.state or self.initial_state())["lambda"]
        logits = token_logits(model, batch.forget)
        logits_BTV = logits.logits_BTV.float()
        peak_BT = (logits_BTV.amax(dim=2) - logits_BTV.mean(dim=2)).square()
        forget = token_mean(peak_BT, logits.mask, batch.forget)
        retain = mean_nll(model, batch.retain)
        return Loss(self.gamma * forget + dual * (retain - self.eps), forget, retain)
