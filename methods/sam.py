"""SAM, sharpness-aware minimisation: forget where the weights around are forgetting too, against relearning.

    L = max over |d| <= rho of w_f L_f(theta + d) + w_r L_r(theta)

with L_f, L_r and their weights those of a base method, d over all weights that are trained, and the maximum taken to
first order: d = rho g / |g|, g the gradient of L_f at theta. A step goes along w_f times the gradient of L_f at
theta + d and w_r times that of L_r at theta; both are of the whole step, over all micro-batches and workers.
Source: Fan et al., arXiv 2502.05374; SAM: Foret et al., arXiv 2010.01412.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from methods.wrapper import OwnAndBase, Wrapper


class SAM(Wrapper):
    """base: a method's name and hyperparameters. rho: how far around the weights, in their Euclidean norm."""

    needs: ClassVar[frozenset[str]] = OwnAndBase("two_gradients")  # type: ignore[assignment]
    rho: float = Field(default=0.01, gt=0)

    @property
    def radius(self) -> float:
        return self.rho

    def gradient_weights(
        self, forget_forget: float, forget_retain: float, state: Mapping[str, float]
    ) -> tuple[float, float]:
        base = self.base_method()
        if "two_gradients" in base.needs:
            return base.gradient_weights(forget_forget, forget_retain, state)
        return base.weights(state)
