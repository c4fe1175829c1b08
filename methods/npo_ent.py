"""NPO with entropy optimisation: sharper answers on the forget set, unchanged spread on the retain set.

    L = NPO's loss + lambda_forget * mean H on D_f + lambda_retain * mean H on D_r

with H the entropy of the next-token distribution at a labelled token; with lambda_forget > 0 sampling finds little that
greedy decoding does not.
Source: Scholten et al., arXiv 2410.03523; NPO: Zhang et al., arXiv 2404.05868.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from methods.base import Method, TokenBatch, TokenLogits, UnlearnBatch, token_logits, token_mean, token_nll

if TYPE_CHECKING:
    from torch import Tensor


class NPOEnt(Method):
    """beta, gamma, alpha: as in NPO; lambda_forget, lambda_retain: weights of the entropies."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_logprob"})
    beta: float = Field(default=0.05, gt=0)
    gamma: float = 1.0
    alpha: float = 1.0
    lambda_forget: float = 1.0
    lambda_retain: float = -0.25

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        from torch.nn.functional import logsigmoid

        assert batch.forget is not None
        assert batch.forget.reference_logprob is not None
        logits = token_logits(model, batch.forget)
        ratio_B = token_nll(logits).nll_BT.sum(dim=1) + batch.forget.reference_logprob
        forget = -(2 / self.beta) * logsigmoid(self.beta * ratio_B).mean()
        return self.gamma * forget + self.lambda_forget * mean_entropy(logits, batch.forget)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.retain is not None
        logits = token_logits(model, batch.retain)
        retain = token_mean(*token_nll(logits), batch.retain)
        return self.alpha * retain + self.lambda_retain * mean_entropy(logits, batch.retain)


def mean_entropy(logits: TokenLogits, batch: TokenBatch) -> Tensor:
    """Mean entropy, in nats, of the next-token distribution over the labelled tokens, a scalar."""
    logprob_BTV = logits.logits_BTV.float().log_softmax(dim=2)
    entropy_BT = -(logprob_BTV.exp() * logprob_BTV).sum(dim=2)
    return token_mean(entropy_BT, logits.mask, batch)
