"""Negative preference optimisation: push the forget answers below what the target model gives them.

    L = - gamma (2 / beta) mean log sigma(beta (S_theta - S_ref)) + alpha * mean NLL on D_r

with S the sum of the answer's token cross-entropies, so that S_theta - S_ref = -(log p_theta - log p_ref).
Source: Zhang et al., arXiv 2404.05868, equation 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import UnlearnBatch, Weighted, sequence_nll

if TYPE_CHECKING:
    from torch import Tensor


class NPO(Weighted):
    """beta: how soon the push fades (small: as gradient ascent); gamma, alpha: weights of forget and retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_logprob"})
    beta: float = Field(default=0.1, gt=0)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        from torch.nn.functional import logsigmoid

        assert batch.forget is not None
        assert batch.forget.reference_logprob is not None
        nll_B, _ = sequence_nll(model, batch.forget)
        return -(2 / self.beta) * logsigmoid(self.beta * (nll_B + batch.forget.reference_logprob)).mean()
