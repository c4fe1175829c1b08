"""A finished search as typed records: its trials, the winner, and the trials that no other beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from benchmarks import BENCHMARKS
from engine.config.experiment import Experiment, parse_experiment
from engine.jsonl import JsonObject
from engine.robustness.reading import attacks_of
from engine.search.trial_evaluation import Setting
from engine.search.trial_report import TrialReport


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of the space and its last report."""

    id: str
    values: Mapping[str, object]
    report: TrialReport

    @property
    def eligible(self) -> bool:
        """Whether it was sampled in full and keeps enough, so that it may win."""
        return self.report.full and self.report.feasible

    @property
    def state(self) -> str:
        report = self.report
        if report.failed:
            return "failed"
        if not report.feasible:
            return "keeps too little"
        if report.full:
            return "full"
        return f"stopped at epoch {report.epoch:g}" if report.epoch else f"stopped at n = {report.n}"


@dataclasses.dataclass(frozen=True)
class Search:
    """A finished search. seconds: of this call; folder: where its files are."""

    trials: list[Trial]
    setting: Setting
    folder: Path
    seconds: float

    @property
    def full(self) -> list[Trial]:
        """The trials that were sampled in full."""
        return [trial for trial in self.trials if trial.report.full]

    @property
    def best(self) -> Trial | None:
        """The feasible trial, sampled in full, with the least leakage on the prompts that decide."""
        return min(
            (trial for trial in self.trials if trial.eligible), key=lambda trial: trial.report.leak, default=None
        )

    @property
    def front(self) -> list[Trial]:
        """The trials, sampled in full, that no other beats in both leakage and utility, by rising utility."""
        kept = [trial for trial in self.full if not any(_beats(other, trial) for other in self.full)]
        return sorted(kept, key=lambda trial: trial.report.utility)

    @property
    def tokens(self) -> int:
        return sum(trial.report.tokens for trial in self.trials)

    def best_experiment(self) -> Experiment | None:
        """The experiment that reruns the winner alone: same stages, same numbers. None where no trial won."""
        if self.best is None:
            return None
        experiment, section = self.setting.experiment, self.setting.space.section(self.best.values)
        document = experiment.model_dump(mode="json") | {
            "name": f"{experiment.name}-best",
            "methods": [section.model_dump(mode="json", exclude_unset=True)],
            "attacks": self._attacks(),
        }
        return parse_experiment(document, "the winner")

    def _attacks(self) -> list[JsonObject]:
        """The attacks of the winner's experiment: its own, and that of the objective, which may be among them."""
        setting, sections = self.setting, list(self.setting.experiment.attacks)
        if setting.attack is not None and setting.space.objective.attack is not None:
            benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
            own = attacks_of(setting.experiment, benchmark)
            kept = [each for each, attack in zip(sections, own, strict=True) if attack.title != setting.attack.title]
            sections = [*kept, setting.space.objective.attack]
        return [section.model_dump(mode="json") for section in sections]


def _beats(other: Trial, trial: Trial) -> bool:
    """Whether `other` is as good in both leakage and utility, and better in one."""
    ours, theirs = (trial.report.leak, trial.report.utility), (other.report.leak, other.report.utility)
    return theirs[0] <= ours[0] and theirs[1] >= ours[1] and theirs != ours
