"""Retraining from the pretrained model on the retain set alone, the gold standard; fine-tuning is the same loss.

    L = mean NLL on D_r

Source: TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from methods.base import Loss, Method, UnlearnBatch, mean_nll


class Retrain(Method):
    """Fine-tune on the retain set; the forget set is never shown to it."""

    starts_from: ClassVar[Literal["target", "pretrained"]] = "pretrained"

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.retain is not None
        retain = mean_nll(model, batch.retain)
        return Loss(retain, retain.new_zeros(()), retain)
