"""The end of a search: which trials get more samples, until none of them can win any more.

Reports of trials come in, each with a bound that sampling it in full cannot undercut; the same come out, the finalists'
sampled in full. Knows nothing of models or of how samples are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.search.space import Rung
from engine.search.trial_report import TrialReport


def sample_finalists(
    reports: Mapping[str, TrialReport], ladder: Sequence[Rung], sample: Callable[[str, Rung], TrialReport]
) -> dict[str, TrialReport]:
    """Sample the most promising trial at its next rung, until every other is surely no better than the best.

    reports: of each trial by its id. ladder: rungs, the last one sampling in full. sample: the report of a trial at a
    rung. A trial is promising by its bound, then by what is predicted. One that was stopped while training is out; so
    is one that keeps too little, or fails. The winner is the one that sampling all in full would give, or one that
    leaks as much.
    """
    latest = dict(reports)
    while True:
        least = min(
            (report.leak for report in latest.values() if report.full and report.feasible), default=float("inf")
        )
        candidates = [name for name, report in latest.items() if can_win(report, least)]
        if not candidates:
            return latest
        name = min(candidates, key=lambda one: (latest[one].bound, latest[one].value, one))
        latest[name] = sample(name, next(rung for rung in ladder if rung.n > latest[name].n))


def can_win(report: TrialReport, least: float) -> bool:
    """Whether a trial may yet leak less than `least` when sampled in full."""
    out = report.failed or not report.feasible or report.full or report.epoch > 0
    return not out and report.bound < least
