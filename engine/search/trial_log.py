"""The log of a search: every report of every trial, a JSON line each, in the search's folder.

A search that was killed reads it and goes on where it was. Knows nothing of Ray Tune.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from engine.reporting.formatting import finite
from engine.search.trial_report import TrialReport

LOG_FILE = "looks.jsonl"


@dataclasses.dataclass(frozen=True)
class LogRow:
    """One report. hours: since the search began, over all its processes; values: the trial's hyperparameters."""

    trial: str
    hours: float
    values: Mapping[str, object]
    report: TrialReport


class TrialLog:
    """The rows of a search's folder; `add` appends one, {"trial", "hours", "values", "seen": the report} on disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_FILE
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = [row for line in lines if (row := _row(line)) is not None]
        self.before = self.rows[-1].hours if self.rows else 0.0
        self.began = time.monotonic()

    @property
    def hours(self) -> float:
        """Hours that the search has taken, over all its processes, up to their last reports."""
        return self.before + (time.monotonic() - self.began) / 3600

    @property
    def tokens(self) -> int:
        """Tokens sampled for all trials: each report says how many its trial has taken so far."""
        of_trial: dict[str, int] = {}
        for row in self.rows:
            of_trial[row.trial] = max(of_trial.get(row.trial, 0), row.report.tokens)
        return sum(of_trial.values())

    def note(self, trial: str, values: Mapping[str, object], report: TrialReport) -> LogRow:
        """Count a report that another process writes."""
        self.rows.append(row := LogRow(trial, self.hours, values, report))
        return row

    def add(self, trial: str, values: Mapping[str, object], report: TrialReport) -> None:
        """Append a report to the file."""
        row = self.note(trial, values, report)
        document = {"trial": trial, "hours": row.hours, "values": values, "seen": report.as_dict()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(document), default=str) + "\n")


def _row(line: str) -> LogRow | None:
    """None for a line that was cut off by a kill."""
    try:
        raw = json.loads(line)
        return LogRow(raw["trial"], raw["hours"], raw["values"], TrialReport.from_dict(raw["seen"]))
    except (ValueError, KeyError, TypeError):
        return None
