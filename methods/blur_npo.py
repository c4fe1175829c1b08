"""BLUR-NPO: forgetting first, keeping only where it does not stand against it (bi-level optimisation).

    step along  gamma * g_f + alpha * (g_r - (<g_r, g_f> / <g_f, g_f>) g_f)

with g_f the gradient of NPO's forget loss (npo.py) and g_r that of the mean NLL on D_r, over all parameters.
Source: Reisizadeh et al., arXiv 2506.08164.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from methods.npo import NPO


class BlurNPO(NPO):
    """beta: how soon the push fades; gamma, alpha: weights of the forget and of the retain gradient."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_logprob", "two_gradients"})

    def gradient_weights(
        self, forget_forget: float, forget_retain: float, state: Mapping[str, float]
    ) -> tuple[float, float]:
        along = forget_retain / forget_forget if forget_forget > 0 else 0.0
        return self.gamma - self.alpha * along, self.alpha
