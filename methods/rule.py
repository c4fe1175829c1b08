"""RULE, Robust Unlearning under LEak@k: unlearn with a base method, sample, unlearn what leaks too, until it stops.

    round 0: the base method on D_f and D_r
    round r: m samples of every forget prompt at T = 1, p = 1; stop if leak@m <= tolerance; else the samples with
             S >= threshold join D_f as further answers, and the base method goes on

Source: arXiv 2511.04934. The authors' code is not public; this is our reading of the paper. engine/pipeline/rule.py
runs it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from methods.base import Method
from methods.wrapper import WithBase


class Rule(WithBase):
    """RULE's settings over a base method.

    base: a method's name and hyperparameters, as in an experiment file. rounds: at most so many. samples: m a prompt
    and round. metric: core metric that finds leaks (None: the benchmark's). threshold: score from which a sample leaks.
    steps: optimiser steps a round (None: as many as round 0). tolerance: leak@m at which it stops (None: the retain
    model's own, 0 without one). pool: all leaks so far, or this round's; pool_cap: at most so many, the newest.
    moving_reference: the reference of NPO and kin is the model at the round's start instead of the target model.
    control: also run the base method for as many steps without samples.
    """

    rounds: int = Field(default=5, ge=1)
    samples: int = Field(default=128, ge=1)
    metric: str | None = None
    threshold: float = Field(default=1.0, gt=0, le=1)
    steps: int | None = Field(default=None, ge=1)
    tolerance: float | None = Field(default=None, ge=0, le=1)
    pool: Literal["all", "round"] = "all"
    pool_cap: int | None = Field(default=None, ge=1)
    moving_reference: bool = False
    control: bool = False

    procedure: ClassVar[Literal["training", "rounds"]] = "rounds"

    @classmethod
    def can_be_over(cls, method: type[Method]) -> bool:
        return super().can_be_over(method) and method.starts_from == "target"

    @property
    def trained(self) -> Method:
        return self.base_method()

    @property
    def has_control(self) -> bool:
        return self.control

    @property
    def trainings(self) -> int:
        return 1 + self.rounds + self.control

    @model_validator(mode="after")
    def _has_a_reference_to_move(self) -> Rule:
        if self.moving_reference and "reference_logprob" not in self.base_method().needs:
            raise ValueError(f"moving_reference: {self.base['name']} has no reference log-probabilities to move")
        return self
