"""Ending trials while they are trained, a search whose budget is spent, and the record of every look.

Ray Tune asks about each report; the answer follows from all reports so far, which stand in a file of the search's
folder, so that a search that was killed goes on where it was. Also says each look on one line. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from engine.search.space import Asha
from engine.search.trial import reported

RECORD = "looks.jsonl"
EPOCHS = 10**9  # ASHA's own end of a trial: never, a trial ends by itself


class Record:
    """Every report of a search, one JSON line each: {"trial", "hours" since the search began, "values", "seen"}."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:  # cut off by a kill
                    continue
        self.before = self.rows[-1]["hours"] if self.rows else 0.0
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
            of_trial[row["trial"]] = max(of_trial.get(row["trial"], 0), row["seen"]["tokens"])
        return sum(of_trial.values())

    def add(self, trial: str, values: dict[str, Any], seen: dict[str, Any]) -> None:
        row = {"trial": trial, "hours": self.hours, "values": values, "seen": seen}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain(row), default=str) + "\n")


class Race(FIFOScheduler):
    """Keeps the record, and ends trials while they are trained by ASHA where that is asked for."""

    def __init__(self, folder: Path, asha: Asha | None) -> None:
        super().__init__()
        self.folder, self.settings = folder, asha
        self.record: Record | None = None
        self.asha: Any = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._open(tune_controller)
        if self.asha is not None:
            self.asha.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        record = self._open(tune_controller)
        record.add(trial.trial_id, trial.config, reported(result))
        if result["epoch"] > 0 and self.asha is not None:
            return str(self.asha.on_trial_result(tune_controller, trial, result))
        return TrialScheduler.CONTINUE

    def _open(self, tune_controller: Any) -> Record:
        """The record; what it holds of a search that was cut off is told to ASHA again, whose rungs were lost."""
        if self.record is None:
            self.record = Record(self.folder)
            if self.settings is not None:
                self.asha = AsyncHyperBandScheduler(
                    time_attr="epoch",
                    metric="value",
                    mode="min",
                    max_t=EPOCHS,
                    grace_period=self.settings.first,  # type: ignore[arg-type]  # epochs may be halves
                    reduction_factor=self.settings.reduction,
                    stop_last_trials=False,
                )
            for row in self.record.rows if self.asha is not None else []:
                if row["seen"]["epoch"] > 0:
                    past = SimpleNamespace(trial_id=row["trial"])
                    self.asha.on_trial_add(tune_controller, past)
                    self.asha.on_trial_result(tune_controller, past, row["seen"])
        return self.record


class Budget(Stopper):
    """Ends the whole search once its trials have sampled so many tokens, or it has taken so many hours."""

    def __init__(self, folder: Path, tokens: int | None, hours: float | None) -> None:
        self.folder, self.tokens, self.hours = folder, tokens, hours
        self.record: Record | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._open().rows.append({"trial": trial_id, "seen": result})  # Race writes it
        return False

    def stop_all(self) -> bool:
        record = self._open()
        spent = self.tokens is not None and record.tokens >= self.tokens
        return spent or (self.hours is not None and record.hours >= self.hours)

    def _open(self) -> Record:
        if self.record is None:
            self.record = Record(self.folder)
        return self.record


class Told(Callback):
    """Says each look on stderr. Without state, for Ray Tune keeps it with the search."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        print(describe(trial.trial_id, trial.config, result), file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """`value` with None for every number that is not finite, as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(name: str, values: dict[str, Any], seen: dict[str, Any]) -> str:
    """One look on one line."""
    point = ", ".join(f"{key} {short(value)}" for key, value in values.items())
    if seen["failed"]:
        return f"trial {name} ({point}): failed: {seen['failed']}"
    parts = [f"epoch {seen['epoch']:g}"] if seen["epoch"] else []
    if seen["n"]:
        parts.append(f"n {seen['n']}, leak@{seen['k']} {seen['leak']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}]")
    elif seen["low"] > 0:
        parts.append(f"leak@{seen['k']} at least {seen['low']:.3f}")
    parts += [f"{key} {seen[key]:.3f}" for key in ("greedy", "utility") if seen[key] == seen[key]]
    parts += [] if seen["feasible"] else ["keeps too little"]
    return f"trial {name} ({point}): {', '.join(parts)}"


def short(value: Any) -> str:
    """A hyperparameter for a narrow column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
