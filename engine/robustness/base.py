"""What an attack is: it makes another model of a model, or asks the same model otherwise.

An attack's options come from the experiment file. Knows nothing of how leak@k is taken, nor of which models there are.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Benchmark, Probe
from engine.config.experiment import Experiment
from engine.config.sections import Label, TrainSection
from engine.models.source import ModelSource
from engine.stages.base import Stages


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an attack works with. target: the model before unlearning, None where there is none."""

    stages: Stages
    experiment: Experiment
    benchmark: Benchmark
    target: ModelSource | None


class Attack(BaseModel):
    """One attack: its fields are its options. `on_servers` says whether it works on a model behind a server, `judges`
    what leak@k is taken of after it, in words; `version` is raised where it changes weights otherwise than before; what
    else an attack does shows in what it trains on or asks.

    seed: of all that is random in it (in an experiment file that does not set it: the experiment's). label: its name in
    tables, where the same attack is made twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    on_servers: ClassVar[bool] = False
    judges: ClassVar[str] = "the facts"
    version: ClassVar[int] = 1
    seed: int = Field(default=0, ge=0)
    label: Label | None = Field(default=None, exclude=True)  # no part of what is done

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.label or self.default_label

    @property
    def default_label(self) -> str:
        """A name that tells it from the same attack with other main options."""
        raise NotImplementedError

    def done(self, family: str = "") -> str:
        """What was done, as the beginning of a sentence about the model: "After 50 steps on 10% of the facts"."""
        raise NotImplementedError

    def reads(self, benchmark: Benchmark) -> dict[str, str]:
        """What it reads beside the experiment's own data and models, by option: digests of the content. UserError where
        that cannot be read."""
        return {}

    def check(self, experiment: Experiment, benchmark: Benchmark) -> None:
        """UserError where the attack cannot be made in this experiment; called before any work starts."""

    def training(self, experiment: Experiment) -> TrainSection | None:
        """Settings of the attack's training, None where it trains nothing. UserError for a wrong one."""
        return None


class ModelAttack(Attack):
    """An attack that makes a model of a model."""

    def attacked(self, setting: Setting, label: str, model: ModelSource) -> ModelSource | None:
        """The model after the attack; None where the attack means nothing for this model."""
        raise NotImplementedError

    def judged(self, benchmark: Benchmark) -> list[Probe]:
        """The benchmark's probes that may be judged after the attack: all, unless the attack gave some away."""
        return benchmark.probes


class PromptAttack(Attack):
    """An attack that asks the same model otherwise."""

    on_servers: ClassVar[bool] = True

    def asked(self, benchmark: Benchmark, served: bool = False) -> dict[str, list[Probe]]:
        """By family, the probes that ask for the benchmark's leak group in another way; the id of each is that of the
        probe it stands for, a tilde and the family. served: the model stands behind a server, which begins its answers
        itself."""
        raise NotImplementedError
