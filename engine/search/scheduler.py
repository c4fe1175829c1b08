"""What Ray Tune asks about each report: whether the trial goes on, and whether the search has spent its budget.

The answers follow from all reports so far, which are in the search's log, so that a search that was killed goes on
where it was. Knows nothing of models.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from engine.search.space import Asha
from engine.search.trial_log import TrialLog
from engine.search.trial_report import TrialReport, report_line

EPOCHS = 10**9  # ASHA's own end of a trial: never, a trial ends by itself


class SearchScheduler(FIFOScheduler):
    """Writes the log, and ends trials while they are trained by ASHA where the space has it."""

    def __init__(self, folder: Path, asha: Asha | None) -> None:
        super().__init__()
        self.folder, self.settings = folder, asha
        self.log: TrialLog | None = None
        self.asha: AsyncHyperBandScheduler | None = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._open()
        if self.asha is not None:
            self.asha.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = TrialReport.from_dict(result)
        self._open().add(trial.trial_id, trial.config, report)
        if report.epoch > 0 and self.asha is not None:
            return self.asha.on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE

    def _open(self) -> TrialLog:
        """The log; what it holds of a search that was cut off is told to ASHA again, whose rungs were lost."""
        if self.log is None:
            self.log = TrialLog(self.folder)
            if self.settings is not None:
                self.asha = _asha(self.settings, self.log)
        return self.log


def _asha(settings: Asha, log: TrialLog) -> AsyncHyperBandScheduler:
    asha = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="value",
        mode="min",
        max_t=EPOCHS,
        grace_period=settings.first,  # type: ignore[arg-type]  # epochs may be halves
        reduction_factor=settings.reduction,
        stop_last_trials=False,
    )
    controller: Any = None  # which ASHA does not use
    for row in log.rows:
        if row.report.epoch > 0:
            past: Any = SimpleNamespace(trial_id=row.trial)  # all that ASHA reads of a trial
            asha.on_trial_add(controller, past)
            asha.on_trial_result(controller, past, row.report.as_dict())
    return asha


class Budget(Stopper):
    """Ends the whole search once its trials have sampled so many tokens, or it has taken so many hours."""

    def __init__(self, folder: Path, tokens: int | None, hours: float | None) -> None:
        self.folder, self.tokens, self.hours = folder, tokens, hours
        self.log: TrialLog | None = None

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        self._open().note(trial_id, {}, TrialReport.from_dict(result))  # SearchScheduler writes it
        return False

    def stop_all(self) -> bool:
        log = self._open()
        spent = self.tokens is not None and log.tokens >= self.tokens
        return spent or (self.hours is not None and log.hours >= self.hours)

    def _open(self) -> TrialLog:
        if self.log is None:
            self.log = TrialLog(self.folder)
        return self.log


class PrintReports(Callback):
    """Prints each report on stderr. Without state, for Ray Tune keeps it with the search."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        line = report_line(trial.trial_id, trial.config, TrialReport.from_dict(result))
        print(line, file=sys.stderr, flush=True)
