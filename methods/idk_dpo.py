"""DPO towards refusals: prefer "I don't know" and its variants to the forget answer.

    L = as in dpo.py, each alternate answer a refusal

Source: TOFU, arXiv 2401.06121 (preference optimisation); Zhang et al., arXiv 2404.05868 (with DPO's loss).
"""

from __future__ import annotations

from methods.dpo import DPO


class IdkDPO(DPO):
    """beta: how soon the push fades; gamma, alpha: weights of the forget and of the retain loss."""
