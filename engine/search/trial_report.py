"""What is known of a trial at one moment: its leakage with bounds, what it keeps, and how far it came.

Ray Tune, the trial log and search.json carry a report as a flat dictionary; the fields' names are the keys there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from engine.jsonl import JsonObject

WORST = 2.0  # the objective of a trial that failed: above every leak@k


@dataclasses.dataclass(frozen=True)
class LeakEstimate:
    """n: samples a prompt, 0 where none were drawn. leak: leak@k with its interval [low, high], at the largest k up to
    the objective's that n allows. bound: what sampling in full will observe at least, for certain: its first samples
    are these. predicted: a guess at what it will observe. excess: leak minus the retain model's, NaN where it is
    not part of the objective. tokens: sampled for this estimate."""

    n: int
    k: int
    leak: float
    low: float
    high: float
    bound: float
    predicted: float
    tokens: int = 0
    excess: float = math.nan
    excess_low: float = math.nan
    excess_high: float = math.nan


@dataclasses.dataclass(frozen=True)
class TrialReport(LeakEstimate):
    """epoch: of an estimate in the middle of training, 0 after it. greedy: mean greedy score on the prompts that
    decide. utility, kept: NaN and empty until measured. value: what the search makes small. feasible: whether it keeps
    enough, as far as is known. full: sampled as every finalist is. tokens: sampled so far for this trial. failed: why
    it came to nothing, else empty."""

    epoch: float = 0.0
    greedy: float = math.nan
    utility: float = math.nan
    kept: Mapping[str, float] = dataclasses.field(default_factory=dict)
    value: float = WORST
    feasible: bool = True
    full: bool = False
    failed: str = ""

    @classmethod
    def of(cls, estimate: LeakEstimate) -> TrialReport:
        """The report of an estimate alone, of which nothing else is known."""
        leak = {field.name: getattr(estimate, field.name) for field in dataclasses.fields(LeakEstimate)}
        return cls(**leak, value=estimate.predicted)

    @classmethod
    def of_failure(cls, cause: str) -> TrialReport:
        """The report of a trial that came to nothing."""
        nothing = LeakEstimate(n=0, k=0, leak=math.nan, low=0.0, high=1.0, bound=0.0, predicted=WORST)
        return dataclasses.replace(cls.of(nothing), feasible=False, failed=" ".join(cause.split())[:300])

    @classmethod
    def from_dict(cls, result: Mapping[str, object]) -> TrialReport:
        """The report in a dictionary that may hold more, null where a number was not finite. TypeError without one."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in result]
        values = {name: math.nan if result[name] is None else result[name] for name in names}
        return cls(**values)  # type: ignore[arg-type]  # as_dict wrote them

    def as_dict(self) -> JsonObject:
        return dataclasses.asdict(self)


def report_line(name: str, values: Mapping[str, object], report: TrialReport) -> str:
    """A trial's report on one line."""
    point = ", ".join(f"{key} {short(value)}" for key, value in values.items())
    if report.failed:
        return f"trial {name} ({point}): failed: {report.failed}"
    parts = [f"epoch {report.epoch:g}"] if report.epoch else []
    if report.n:
        parts.append(f"n {report.n}, leak@{report.k} {report.leak:.3f} [{report.low:.3f}, {report.high:.3f}]")
    elif report.low > 0:
        parts.append(f"leak@{report.k} at least {report.low:.3f}")
    measured = {"greedy": report.greedy, "utility": report.utility}
    parts += [f"{key} {value:.3f}" for key, value in measured.items() if not math.isnan(value)]
    parts += [] if report.feasible else ["keeps too little"]
    return f"trial {name} ({point}): {', '.join(parts)}"


def short(value: object) -> str:
    """A hyperparameter for a narrow column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
