"""What every unlearning method is made of: token batches in, a loss out.

Knows torch tensors and the shapes below; knows nothing of Ray, of data files or of how a step is taken.
Shape letters: B sequences in the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch
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
        from torch import Tensor

        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass(frozen=True)
class UnlearnBatch:
    """One step's data; a set that the method does not need is None.

    alternate: row by row another answer to the question of `forget`. reference: the frozen target model, if needed.
    state: what the method carries from step to step (see Method.next_state).
    """

    forget: TokenBatch | None = None
    retain: TokenBatch | None = None
    alternate: TokenBatch | None = None
    reference: Any = None
    state: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Loss(NamedTuple):
    """Scalar tensors: what is minimised, and its forget and retain parts before their weights."""

    total: Tensor
    forget: Tensor
    retain: Tensor


class Method(BaseModel):
    """An unlearning method: its fields are its hyperparameters, its losses are its formula.

    needs: which of "retain", "reference_logprob", "reference_model", "alternate" its loss reads; "two_gradients" where
        the step is not the gradient of one loss but combines those of the forget and of the retain part.
    starts_from: the model whose training makes the method's; "pretrained": from the model before the target model, on
        the retain set alone, whatever was unlearned before.
    procedure: one "training", or "rounds" of a base method's, each on the forget set and on what still leaks.
    version: of its formula: raised with it, so that a store that holds trainings of the one before makes them anew.

    Most methods are `forget_loss` alone, or with a `retain_loss` of their own; `loss` adds the two up, weighted. A
    method whose loss has no such parts has `loss` alone. A method that carries something from step to step (a dual
    variable) has `initial_state` and `next_state`; the training loop hands the state to `loss` as batch.state, saves it
    with its checkpoints and gives `next_state` the losses averaged over all workers: all workers hold the same state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    needs: ClassVar[frozenset[str]] = frozenset({"retain"})
    starts_from: ClassVar[Literal["target", "pretrained"]] = "target"
    procedure: ClassVar[Literal["training", "rounds"]] = "training"
    version: ClassVar[int] = 1

    @property
    def alternate_prompt(self) -> str | None:
        """How the target model is told to give alternate answers, a text with {question} and {answer} to fill in; None:
        they are refusals."""
        return None

    @property
    def alternate_samples(self) -> int:
        """Alternate answers that the target model gives to each question."""
        return 1

    @property
    def trained(self) -> Method:
        """The method whose loss its trainings minimise: itself, or the base method of rounds."""
        return self

    @property
    def layers(self) -> int | None:
        """Decoder layers that its loss runs, from the first; None: all of them and the head."""
        return None

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the methods that it is made over, if any, the outermost first."""
        return ()

    @property
    def has_control(self) -> bool:
        """Whether a control of as many steps stands beside its model."""
        return False

    @property
    def trainings(self) -> int:
        """At most so many trainings make its model and its control."""
        return 1

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        """What a step minimises, on one micro-batch."""
        forget, retain = self.forget_loss(model, batch), self.retain_loss(model, batch)
        of_forget, of_retain = self.weights(batch.state)
        return Loss(of_forget * forget + of_retain * retain, forget, retain)

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        """The forget part before its weight, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no forget loss")

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        """The retain part before its weight, a scalar: the mean NLL on D_r, nought where the method reads no D_r."""
        import torch

        if "retain" not in self.needs:
            return torch.zeros(())
        assert batch.retain is not None
        return mean_nll(model, batch.retain)

    def weights(self, state: Mapping[str, float]) -> tuple[float, float]:
        """Weights of the forget and of the retain loss in the total."""
        return 1.0, 1.0

    def initial_state(self) -> dict[str, float]:
        """The state before the first step; empty for a method that keeps none."""
        return {}

    def next_state(self, state: dict[str, float], losses: Mapping[str, float], epoch: float) -> dict[str, float]:
        """The state after a step. losses: its "total", "forget" and "retain"; epoch: passes over the forget set."""
        return state

    def gradient_weights(
        self, forget_forget: float, forget_retain: float, state: Mapping[str, float]
    ) -> tuple[float, float]:
        """Weights of the forget and of the retain gradient in the step, from their inner products ("two_gradients")."""
        raise NotImplementedError(f"{type(self).__name__} does not combine two gradients")

    @property
    def radius(self) -> float:
        """How far along the forget gradient the weights are moved while the forget gradient of the step is taken
        ("two_gradients"), in their Euclidean norm; 0: it is taken where they stand."""
        return 0.0

    def edited(self, trained: Tensor, target: Tensor) -> Tensor:
        """A parameter of the unlearned model from its value after training and in the target model."""
        return trained


def unlearns_by_a_loss(method: type[Method]) -> bool:
    """Whether a method has a forget loss, or a loss of its own in the place of one."""
    return method.forget_loss is not Method.forget_loss or method.loss is not Method.loss


class Weighted(Method):
    """A method whose total is gamma * forget loss + alpha * retain loss."""

    gamma: float = 1.0
    alpha: float = 1.0

    def weights(self, state: Mapping[str, float]) -> tuple[float, float]:
        return self.gamma, self.alpha


def rows(batch: TokenBatch, indices: Sequence[int]) -> TokenBatch:
    """Some of the sequences, without the columns in which all of them are padding."""
    mask_BT = batch.attention_mask[list(indices)]
    kept_T = mask_BT.any(dim=0)

    def cut(tensor_BT: Tensor) -> Tensor:
        return tensor_BT[list(indices)][:, kept_T]

    logprob_B = batch.reference_logprob
    return dataclasses.replace(
        batch,
        input_ids=cut(batch.input_ids),
        labels=cut(batch.labels),
        attention_mask=cut(batch.attention_mask),
        reference_logprob=None if logprob_B is None else logprob_B[list(indices)],
    )


class TokenLoss(NamedTuple):
    """nll_BT: cross-entropy of each labelled token, 0 elsewhere; mask_BT: 1.0 where labelled. T: the kept positions."""

    nll_BT: Tensor
    mask_BT: Tensor


class TokenLogits(NamedTuple):
    """logits_BTV predict labels_BT (-100 = ignored), already shifted by one position; mask: 1.0 where labelled."""

    logits_BTV: Tensor
    labels_BT: Tensor

    @property
    def mask(self) -> Tensor:
        return (self.labels_BT != IGNORED).float()


def token_logits(model: Any, batch: TokenBatch) -> TokenLogits:
    """Logits at the positions that predict a labelled token in any row, with those labels.

    The output head, the dearest layer of small models, is run on these positions alone where the model allows it.
    """
    keep_T = (batch.labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    inputs = model_inputs(model, batch)
    if "logits_to_keep" in forward_parameters(model):
        logits_BTV = model(**inputs, logits_to_keep=keep_T).logits
    else:
        logits_BTV = model(**inputs).logits[:, keep_T]
    return TokenLogits(logits_BTV, batch.labels[:, keep_T + 1])


def model_inputs(model: Any, batch: TokenBatch) -> dict[str, Any]:
    """Arguments of the forward pass; positions count real tokens, so that padding on either side gives the same."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    if "position_ids" in forward_parameters(model):
        inputs["position_ids"] = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return inputs


def innermost(model: Any) -> Any:
    """The Hugging Face model inside what wraps it (DeepSpeed, DistributedDataParallel, peft)."""
    while True:
        inner = getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


def forward_parameters(model: Any) -> Any:
    """Names that the innermost model's forward takes; wrappers hide them behind *args."""
    return inspect.signature(innermost(model).forward).parameters


def token_nll(logits: TokenLogits) -> TokenLoss:
    """Cross-entropy l_t of every labelled token, in float32, from logits at hand."""
    import torch

    nll_BT = torch.nn.functional.cross_entropy(
        logits.logits_BTV.flatten(0, 1).float(), logits.labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(logits.labels_BT)
    return TokenLoss(nll_BT, logits.mask)


def token_loss(model: Any, batch: TokenBatch) -> TokenLoss:
    """Cross-entropy l_t of every labelled token, in float32."""
    return token_nll(token_logits(model, batch))


def token_mean(values_BT: Tensor, mask_BT: Tensor, batch: TokenBatch) -> Tensor:
    """Mean of a value over all labelled tokens of the step, a scalar."""
    return batch.weight * (values_BT * mask_BT).sum() / mask_BT.sum()


def mean_nll(model: Any, batch: TokenBatch) -> Tensor:
    """NLL: the mean of l_t over all labelled tokens of the step, a scalar."""
    nll_BT, mask_BT = token_loss(model, batch)
    return token_mean(nll_BT, mask_BT, batch)


def sequence_nll(model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """S, the sum of l_t over each sequence, and its number of labelled tokens |y|: two float [B]."""
    nll_BT, mask_BT = token_loss(model, batch)
    return nll_BT.sum(dim=1), mask_BT.sum(dim=1)


def log_ratio(model: Any, batch: TokenBatch) -> Tensor:
    """S_theta - S_ref = log p_ref - log p_theta of each answer: float [B]."""
    assert batch.reference_logprob is not None
    return sequence_nll(model, batch)[0] + batch.reference_logprob
