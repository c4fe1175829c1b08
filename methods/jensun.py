"""JensUn: a bounded pull by Jensen-Shannon divergence, to a refusal on the forget set, to the target model on the rest.

    L = gamma * mean over the labelled tokens of the refusals of JS(onehot(y), p_theta)
        + alpha * mean over the labelled tokens of D_r of JS(p_ref, p_theta)

with JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, in nats: at most log 2 a token, so no term runs away.

Our reading of the paper's formula: the refusals take the answers' place, row by row, and each of their tokens is
predicted after those before it. The authors' code has the two tokens of "No idea" as the target of every position of
question and answer instead.
Source: Singh et al., arXiv 2509.02820; code github.com/nmndeep/JensUn-Unlearning.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import UnlearnBatch, Weighted, token_logits, token_loss, token_mean

if TYPE_CHECKING:
    from torch import Tensor


class JensUn(Weighted):
    """gamma, alpha: weights of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model", "alternate"})

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.alternate is not None
        nll_BT, mask_BT = token_loss(model, batch.alternate)
        p_BT = (-nll_BT).exp()
        # Towards a one-hot distribution only the probability p of its token counts.
        divergence_BT = math.log(2) - (p_BT * nll_BT + (1 + p_BT) * p_BT.log1p()) / 2
        return token_mean(divergence_BT, mask_BT, batch.alternate)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        assert batch.retain is not None
        with torch.no_grad():
            reference_BTV = token_logits(batch.reference, batch.retain).logits_BTV.float().log_softmax(dim=2)
        logits = token_logits(model, batch.retain)
        logprob_BTV = logits.logits_BTV.float().log_softmax(dim=2)
        middle_BTV = torch.logaddexp(reference_BTV, logprob_BTV) - math.log(2)
        divergence_BT = _kl(reference_BTV, middle_BTV) / 2 + _kl(logprob_BTV, middle_BTV) / 2
        return token_mean(divergence_BT, logits.mask, batch.retain)


def _kl(p_BTV: Tensor, q_BTV: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities: float [B, T]."""
    return (p_BTV.exp() * (p_BTV - q_BTV)).sum(dim=2)
