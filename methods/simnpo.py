"""SimNPO: NPO without a reference model, by length-normalised loss.

    L = - gamma (2 / beta) mean log sigma(beta S_theta / |y| - delta) + alpha * mean NLL on D_r

Source: Fan et al., arXiv 2410.07163, equation 4 (there delta is called gamma).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch.nn.functional import logsigmoid

from methods.base import Loss, Method, UnlearnBatch, mean_nll, sequence_nll


class SimNPO(Method):
    """beta: sharpness; delta: margin; gamma, alpha: weights of the forget and of the retain loss."""

    beta: float = Field(default=4.5, gt=0)
    delta: float = 0.0
    gamma: float = 0.125
    alpha: float = 1.0

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.forget is not None
        assert batch.retain is not None
        nll_B, length_B = sequence_nll(model, batch.forget)
        forget = -(2 / self.beta) * logsigmoid(self.beta * nll_B / length_B - self.delta).mean()
        retain = mean_nll(model, batch.retain)
        return Loss(self.gamma * forget + self.alpha * retain, forget, retain)
