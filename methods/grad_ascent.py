"""Gradient ascent on the forget set.

    L = - mean NLL on D_f

Source: arXiv 2210.01504; TOFU, arXiv 2401.06121.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from methods.base import Method, UnlearnBatch, mean_nll

if TYPE_CHECKING:
    from torch import Tensor


class GradAscent(Method):
    """Make the forget answers unlikely; nothing holds the rest of the model in place."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        assert batch.forget is not None
        return -mean_nll(model, batch.forget)
