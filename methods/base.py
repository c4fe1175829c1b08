"""What every unlearning method is made of: token batches in, a loss out.

Knows torch tensors and the shapes below; knows nothing of Ray, of data files or of how a step is taken.
Shape letters: B sequences in the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

IGNORED = -100  # label of a token that takes no part in the loss (prompt, padding)


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Tokenised sequences of one set (forget, retain or alternate answers).

    input_ids, labels, attention_mask: int64 [B, T]; labels are -100 where ignored, else equal to input_ids.
    reference_logprob: float32 [B], log-probability of the labelled tokens under the frozen target model, or None.
    weight: this batch's labelled tokens over the mean of the step's micro-batches; it turns the mean over micro-batches
        and workers of a token mean into the token mean of the whole step. 1.0 where one batch is the step.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    reference_logprob: Tensor | None = None
    weight: float = 1.0

    def to(self, device: torch.device | str) -> TokenBatch:
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass(frozen=True)
class UnlearnBatch:
    """One step's data; a set that the method does not need is None. `reference`: the frozen target model, if needed."""

    forget: TokenBatch | None = None
    retain: TokenBatch | None = None
    alternate: TokenBatch | None = None
    reference: Any = None


class Loss(NamedTuple):
    """Scalar tensors: what is minimised, and its forget and retain parts before their weights (for the record)."""

    total: Tensor
    forget: Tensor
    retain: Tensor


class Method(BaseModel):
    """An unlearning method: its fields are its hyperparameters, `loss` is its formula.

    needs: which of "retain", "reference_logprob", "reference_model", "alternate" its loss reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} is not trained by a loss")


class TokenLoss(NamedTuple):
    """nll_BT: cross-entropy of each labelled token, 0 elsewhere; mask_BT: 1.0 where labelled. T: the kept positions."""

    nll_BT: Tensor
    mask_BT: Tensor


class TokenLogits(NamedTuple):
    """logits_BTV predict labels_BT (-100 = ignored), already shifted by one position."""

    logits_BTV: Tensor
    labels_BT: Tensor


def token_logits(model: Any, batch: TokenBatch) -> TokenLogits:
    """Logits at the positions that predict a labelled token in any row, with those labels.

    The output head, the dearest layer of small models, is run on these positions alone where the model allows it.
    Positions count real tokens, so left and right padding give the same logits.
    """
    keep_T = (batch.labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    positions_BT = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    accepted = _forward_parameters(model)
    if "position_ids" in accepted:
        inputs["position_ids"] = positions_BT
    if "logits_to_keep" in accepted:
        logits_BTV = model(**inputs, logits_to_keep=keep_T, use_cache=False).logits
    else:
        logits_BTV = model(**inputs, use_cache=False).logits[:, keep_T]
    return TokenLogits(logits_BTV, batch.labels[:, keep_T + 1])


def _forward_parameters(model: Any) -> Any:
    """Names that the innermost model's forward takes (DeepSpeed and peft wrap it behind *args)."""
    while True:
        inner = getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            return inspect.signature(model.forward).parameters
        model = inner


def token_loss(model: Any, batch: TokenBatch) -> TokenLoss:
    """Cross-entropy l_t of every labelled token, in float32."""
    logits_BTV, labels_BT = token_logits(model, batch)
    nll_BT = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels_BT)
    return TokenLoss(nll_BT, (labels_BT != IGNORED).to(nll_BT.dtype))


def mean_nll(model: Any, batch: TokenBatch) -> Tensor:
    """NLL: the mean of l_t over all labelled tokens of the step (METHODS notation), a scalar."""
    nll_BT, mask_BT = token_loss(model, batch)
    return batch.weight * nll_BT.sum() / mask_BT.sum()


def sequence_nll(model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """S, the sum of l_t over each sequence, and its number of labelled tokens |y|: two float [B]."""
    nll_BT, mask_BT = token_loss(model, batch)
    return nll_BT.sum(dim=1), mask_BT.sum(dim=1)
