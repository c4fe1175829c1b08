"""Gradient difference: ascent on the forget set, descent on the retain set.

    L = - gamma * mean NLL on D_f + alpha * mean NLL on D_r

Source: arXiv 2203.12817; TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.base import UnlearnBatch, Weighted, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class GradDiff(Weighted):
    """gamma, alpha: weights of the forget and of the retain loss."""

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        return -mean_nll(model, batch.forget)
