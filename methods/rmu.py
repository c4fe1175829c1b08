"""RMU, representation misdirection: steer a layer's activations on the forget set to a random direction.

    L = gamma * mean (h - c u)^2 on D_f + alpha * mean (h - h_ref)^2 on D_r

with h the output of decoder layer `layer` (from 0) at the labelled tokens, the means over tokens and hidden units, and
u a uniform [0, 1) vector normalised to length 1, drawn once a run.
Source: WMDP, arXiv 2403.03218 (there c = 6.5 to 300 and alpha = 1200).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from engine.errors import UserError
from methods.base import (
    IGNORED,
    TokenBatch,
    UnlearnBatch,
    Weighted,
    forward_parameters,
    innermost,
    model_inputs,
    token_mean,
)

if TYPE_CHECKING:
    from torch import Tensor


class RMU(Weighted):
    """layer: whose output is steered; c: length of the steering vector; seed: of its direction; gamma, alpha: weights
    of the forget and of the retain loss."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model"})
    layer: int = Field(default=7, ge=0)
    c: float = 2.0
    seed: int = Field(default=0, ge=0)

    @property
    def layers(self) -> int:
        return self.layer + 1

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        forget_BTH = hidden_states(model, batch.forget, self.layer)
        wanted_H = self.c * steering_vector(forget_BTH.shape[2], self.seed).to(forget_BTH)
        return _mean_square(forget_BTH - wanted_H, batch.forget)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        import torch

        assert batch.retain is not None
        with torch.no_grad():
            reference_BTH = hidden_states(batch.reference, batch.retain, self.layer)
        return _mean_square(hidden_states(model, batch.retain, self.layer) - reference_BTH, batch.retain)


def steering_vector(hidden_size: int, seed: int) -> Tensor:
    """u: float32 [H] of length 1, a function of its arguments alone, so that all workers steer the same way."""
    import torch

    u_H = torch.rand(hidden_size, generator=torch.Generator().manual_seed(seed))
    return u_H / u_H.norm()


def hidden_states(model: Any, batch: TokenBatch, layer: int) -> Tensor:
    """Output of decoder layer `layer` (from 0): float32 [B, T, H]. The layers above it are not run.

    UserError where the model has no such layer.
    """
    decoder = innermost(model).get_decoder()
    name = "layers" if hasattr(decoder, "layers") else "h"  # h: GPT-2 and its kin
    layers = getattr(decoder, name)
    if layer >= len(layers):
        raise UserError(f"rmu: layer must be below the model's {len(layers)} layers, found {layer}")
    outputs: list[Any] = []
    inputs = model_inputs(model, batch)
    if "logits_to_keep" in forward_parameters(model):
        inputs["logits_to_keep"] = 1  # the head is not wanted at all
    handle = layers[layer].register_forward_hook(lambda _, __, output: outputs.append(output))
    setattr(decoder, name, layers[: layer + 1])
    try:
        model(**inputs)  # through the wrapper, whose hooks gather sharded weights
    finally:
        setattr(decoder, name, layers)
        handle.remove()
    output = outputs[0]
    return (output[0] if isinstance(output, tuple) else output).float()


def _mean_square(difference_BTH: Tensor, batch: TokenBatch) -> Tensor:
    return token_mean(difference_BTH.square().mean(dim=2), (batch.labels != IGNORED).float(), batch)
