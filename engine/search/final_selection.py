"""The finals of a search: which trials get more samples, until none of them can win any more.

Reports of trials come in, each with a bound below which its full look cannot fall; the same come out, the finalists'
sampled in full. Knows nothing of models or of how a look is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.search.space import Rung

Report = dict[str, Any]


def finals(
    reports: dict[str, Report], ladder: Sequence[Rung], look: Callable[[str, Rung], Report]
) -> dict[str, Report]:
    """Look again at the most promising trial, one rung dearer, until every other is surely no better than the best.

    reports: of each trial by its id. ladder: rungs, the last one the full look. look: takes one of a trial. A trial is
    promising by its bound, then by what is predicted. One that was stopped while training is out; so is one that keeps
    too little, or fails. The winner is the one that sampling all in full would find, or one that leaks as much.
    """
    seen = dict(reports)
    while True:
        least = min((each["leak"] for each in seen.values() if each["full"] and each["feasible"]), default=float("inf"))
        open_ = [name for name, each in seen.items() if can_win(each, least)]
        if not open_:
            return seen
        name = min(open_, key=lambda one: (seen[one]["bound"], seen[one]["value"], one))
        seen[name] = look(name, next(rung for rung in ladder if rung.n > seen[name]["n"]))


def can_win(report: Report, least: float) -> bool:
    """Whether a trial may yet leak less than `least` in full."""
    out = report["failed"] or not report["feasible"] or report["full"] or report["epoch"] > 0
    return not out and report["bound"] < least
