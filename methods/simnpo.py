"""SimNPO: NPO without a reference model, by length-normalised loss.

    L = - gamma (2 / beta) mean log sigma(beta S_theta / |y| - delta) + alpha * mean NLL on D_r

Source: Fan et al., arXiv 2410.07163, equation 4 (there delta is called gamma).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from methods.base import UnlearnBatch, Weighted, sequence_nll

if TYPE_CHECKING:
    from torch import Tensor


class SimNPO(Weighted):
    """beta: sharpness; delta: margin; gamma, alpha: weights of the forget and of the retain loss."""

    beta: float = Field(default=4.5, gt=0)
    delta: float = 0.0
    gamma: float = 0.125

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        from torch.nn.functional import logsigmoid

        assert batch.forget is not None
        nll_B, length_B = sequence_nll(model, batch.forget)
        return -(2 / self.beta) * logsigmoid(self.beta * nll_B / length_B - self.delta).mean()
