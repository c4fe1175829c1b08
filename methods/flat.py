"""FLAT: make template answers and forget answers as different as an f-divergence can tell, from forget data alone.

    L = mean f*(g*(P(forget answer))) - mean g*(P(template answer))

with P the mean probability of the answer's tokens and the activation g* and conjugate f* of the divergence:

    total variation   g*(v) = tanh(v) / 2             f*(u) = u
    Kullback-Leibler  g*(v) = v                       f*(u) = exp(u - 1)
    Jensen-Shannon    g*(v) = log(2 / (1 + exp(-v)))  f*(u) = -log(2 - exp(u))
    Pearson           g*(v) = v                       f*(u) = u^2 / 4 + u

The template answers are refusals. Source: Wang et al., arXiv 2410.11143.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from methods.base import Method, TokenBatch, UnlearnBatch, token_loss

if TYPE_CHECKING:
    from torch import Tensor


class FLAT(Method):
    """divergence: which f-divergence is made large."""

    needs: ClassVar[frozenset[str]] = frozenset({"alternate"})
    divergence: Literal["total_variation", "kl", "jensen_shannon", "pearson"] = "kl"

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        assert batch.alternate is not None
        known_B = _mean_probability(model, batch.forget)
        template_B = _mean_probability(model, batch.alternate)
        return self._conjugate(self._activation(known_B)).mean() - self._activation(template_B).mean()

    def _activation(self, v_B: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        if self.divergence == "total_variation":
            return v_B.tanh() / 2
        if self.divergence == "jensen_shannon":
            return math.log(2) + logsigmoid(v_B)
        return v_B

    def _conjugate(self, u_B: Tensor) -> Tensor:
        if self.divergence == "kl":
            return (u_B - 1).exp()
        if self.divergence == "jensen_shannon":
            return -(2 - u_B.exp()).log()
        if self.divergence == "pearson":
            return u_B.square() / 4 + u_B
        return u_B


def _mean_probability(model: Any, batch: TokenBatch) -> Tensor:
    """Mean probability of each answer's labelled tokens: float [B]."""
    nll_BT, mask_BT = token_loss(model, batch)
    return ((-nll_BT).exp() * mask_BT).sum(dim=1) / mask_BT.sum(dim=1)
