"""Direct preference optimisation: prefer an alternate answer to the forget answer.

    L = - gamma (2 / beta) mean log sigma(beta [(S_ref - S_theta)(alternate) - (S_ref - S_theta)(forget)])
        + alpha * mean NLL on D_r

with S the sum of the answer's token cross-entropies.
Source: Rafailov et al., arXiv 2305.18290; as an unlearning method Zhang et al., arXiv 2404.05868.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch.nn.functional import logsigmoid

from methods.base import Loss, Method, UnlearnBatch, log_ratio, mean_nll


class DPO(Method):
    """beta: how soon the push fades; gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_logprob", "alternate"})
    beta: float = Field(default=0.1, gt=0)
    gamma: float = 1.0
    alpha: float = 1.0

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.forget is not None
        assert batch.alternate is not None
        assert batch.retain is not None
        margin_B = log_ratio(model, batch.forget) - log_ratio(model, batch.alternate)
        forget = -(2 / self.beta) * logsigmoid(self.beta * margin_B).mean()
        retain = mean_nll(model, batch.retain)
        return Loss(self.gamma * forget + self.alpha * retain, forget, retain)
