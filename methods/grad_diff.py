"""Gradient difference: ascent on the forget set, descent on the retain set.

    L = - gamma * mean NLL on D_f + alpha * mean NLL on D_r

Source: arXiv 2203.12817; TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import Any

from methods.base import Loss, Method, UnlearnBatch, mean_nll


class GradDiff(Method):
    """gamma, alpha: weights of the forget and of the retain loss."""

    gamma: float = 1.0
    alpha: float = 1.0

    def loss(self, model: Any, batch: UnlearnBatch) -> Loss:
        assert batch.forget is not None
        assert batch.retain is not None
        forget = -mean_nll(model, batch.forget)
        retain = mean_nll(model, batch.retain)
        return Loss(self.gamma * forget + self.alpha * retain, forget, retain)
