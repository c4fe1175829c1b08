"""What was found of one model, part by part: a curve of leak@k, a round of RULE, an estimate beyond n, an attack.

Plain typed records that go to JSON and back; engine/reporting/results.py puts them together. Knows nothing of how the
numbers were made.
"""

from __future__ import annotations

import dataclasses

from engine.errors import UserError
from engine.reporting.formatting import Estimate


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The ends of a curve's intervals and its excess' p-values, as a Curve holds them."""

    low: list[float]
    high: list[float]
    excess_low: list[float] | None = None
    excess_high: list[float] | None = None
    excess_p: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """leak@k of one model on one group of probes, by one metric, under one decoding.

    k, leak, low, high: lists of one length; excess*: the same minus the retain model's, None without one; mean: leak@1.
    bound: upper bound on leak@k at the run's confidence, one-sided, valid where nothing leaked too. prompt_bound: upper
    bound on every prompt's own leak@k, all prompts at once. floor: lower bound from the exact probabilities of known
    answers (engine/stages/known_answers.py); far_floor: the same at larger k, by k. excess_p: two-sided p-value of
    "leaks as much as the retain model". sampling_error, prompt_error, cluster_error: standard errors by source
    (engine/leak/variance.py). low, high and excess_* are for prompts like these, over so many `clusters` (as many as
    prompts, where each stands for itself); `these` holds the same for these very prompts,
    inference which of the two stand in low and high. how: "sampled" n times a
    prompt, or "adaptive", until leak@k was known well enough. half_width: of the sampling error at the largest k, where
    sampling was adaptive. excluded: prompts left out, with too few samples that have a score. Each of these is None
    where it was not computed.
    """

    group: str
    metric: str
    decoding: str
    k: list[int]
    leak: list[float]
    low: list[float]
    high: list[float]
    mean: float
    prompts: int
    samples: int
    failed: int
    excess: list[float] | None = None
    excess_low: list[float] | None = None
    excess_high: list[float] | None = None
    bound: list[float] | None = None
    floor: list[float] | None = None
    prompt_bound: list[float] | None = None
    far_floor: dict[str, float] | None = None
    excess_p: list[float] | None = None
    sampling_error: list[float | None] | None = None
    prompt_error: list[float | None] | None = None
    how: str = "sampled"
    half_width: float | None = None
    excluded: int = 0
    clusters: int | None = None
    cluster_error: list[float | None] | None = None
    these: Intervals | None = None
    inference: str = "population"

    @property
    def scope(self) -> str:
        """What the intervals are about: "over 20 clusters", "over 400 prompts" where each prompt stands for itself, or
        "for these very prompts"."""
        if self.inference == "prompts":
            return "for these very prompts"
        clusters = self.prompts if self.clusters is None else self.clusters
        return f"over {self.prompts} prompts" if clusters == self.prompts else f"over {clusters} clusters"

    def for_these(self) -> Curve:
        """The curve with its intervals for these very prompts. UserError where these are not known."""
        if self.these is None:
            raise UserError(
                "no intervals for these very prompts: an older version made this run, or sampling was adaptive or too "
                "small; run the experiment again, its samples are found"
            )
        return dataclasses.replace(self, **vars(self.these), these=None, inference="prompts")

    def at(self, k: int) -> Estimate | None:
        """leak@k with its interval, None where k is none of the curve's."""
        if k not in self.k:
            return None
        index = self.k.index(k)
        return self.leak[index], self.low[index], self.high[index]

    def excess_at(self, k: int) -> Estimate | None:
        """The excess over the retain model at k with its interval, None without one."""
        if self.excess is None or self.excess_low is None or self.excess_high is None or k not in self.k:
            return None
        index = self.k.index(k)
        return self.excess[index], self.excess_low[index], self.excess_high[index]


@dataclasses.dataclass(frozen=True)
class RuleRound:
    """One round of RULE: what m samples of every forget prompt gave before it, and what it then unlearned.

    leak: leak@k by k. failed: samples without a score. pool: leaked answers that are unlearned. tolerance: leak@m at
    which RULE stops. model: identity of the model that was sampled. utility: None in results of earlier versions.
    """

    round: int
    leak_at_m: float
    m: int
    leaking_samples: int
    pool: int
    tokens: int
    tolerance: float
    stopped: bool
    leak: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: int = 0
    model: str = ""
    utility: float | None = None


@dataclasses.dataclass(frozen=True)
class BeyondEstimate:
    """leak@k above the number of samples by one estimator: lists of one length, None where it refuses; `warning` says
    why, or why it is not to be trusted."""

    estimator: str
    k: list[int]
    leak: list[float | None]
    low: list[float | None]
    high: list[float | None]
    warning: str | None


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What one attack, or one family of a prompt attack, recovered from one model.

    curve: leak@k after it, of the prompts that may be judged, with the excess over the retain model under the same
    attack. change, change_low, change_high: by k of the curve, leak@k minus that of the same prompts before; None where
    they were not measured. utility: after the attack, in [0, 1]. uninformative: the retain model gives as much under
    this attack, and more than before it: what came out need not have been in the model. done: what was done, as a
    sentence about the model begins, and judges: what leak@k was then taken of ("the facts", "the others"). stages: as
    ModelResult's, of the attacked model.
    """

    attack: str
    curve: Curve
    utility: float
    change: list[float] | None = None
    change_low: list[float] | None = None
    change_high: list[float] | None = None
    uninformative: bool = False
    done: str = ""
    judges: str = "the facts"
    stages: dict[str, str] = dataclasses.field(default_factory=dict)

    def change_at(self, k: int) -> Estimate | None:
        """The change at k with its interval, None where it was not measured."""
        if self.change is None or self.change_low is None or self.change_high is None or k not in self.curve.k:
            return None
        index = self.curve.k.index(k)
        return self.change[index], self.change_low[index], self.change_high[index]
