"""Direct preference optimisation: prefer an alternate answer to the forget answer.

    L = - gamma (2 / beta) mean log sigma(beta [(S_ref - S_theta)(alternate) - (S_ref - S_theta)(forget)])
        + alpha * mean NLL on D_r

with S the sum of the answer's token cross-entropies.
Source: Rafailov et al., arXiv 2305.18290; as an unlearning method Zhang et al., arXiv 2404.05868.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import UnlearnBatch, Weighted, log_ratio

if TYPE_CHECKING:
    from torch import Tensor


class DPO(Weighted):
    """beta: how soon the push fades; gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_logprob", "alternate"})
    beta: float = Field(default=0.1, gt=0)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        from torch.nn.functional import logsigmoid

        assert batch.forget is not None
        assert batch.alternate is not None
        margin_B = log_ratio(model, batch.forget) - log_ratio(model, batch.alternate)
        return -(2 / self.beta) * logsigmoid(self.beta * margin_B).mean()
