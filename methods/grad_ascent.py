"""Gradient ascent on the forget set.

    L = - mean NLL on D_f

Source: arXiv 2210.01504; TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import Any, ClassVar

from methods.base import Loss, Method, UnlearnBatch, mean_nll


class GradAscent(Method):
    """Make the forget answers unlikely; nothing holds the rest of the model in place."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.forget is not None
        forget = -mean_nll(model, batch.forget)
        return Loss(forget, forget, forget.new_zeros(()))
