"""Ending trials that can no longer win, and a search whose budget of tokens is spent.

Ray Tune asks about each report; the answer follows from the reports alone. Also says each look on one line. Knows
nothing of models.
"""

from __future__ import annotations

import sys
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class Race(FIFOScheduler):
    """Stop a trial whose leakage is surely above that of the best full look so far, or whose utility is too low.

    leak@k grows with k, so that the lower end of a cheap look's interval at a smaller k bounds the objective from
    below; it is compared with the upper end of the best feasible trial that was sampled in full. Intervals are not
    simultaneous over trials: the chance to lose the winner is that of its interval to miss, not zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.best_high = float("inf")

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["full"] and result["feasible"]:
            self.best_high = min(self.best_high, result["high"])
        if not result["feasible"] or result["low"] > self.best_high:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("full") and result.get("feasible"):
            self.best_high = min(self.best_high, result["high"])


class TokenBudget(Stopper):
    """Ends the whole search once its trials have sampled so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.of_trial: dict[str, int] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.of_trial[trial_id] = result["tokens"]
        return False

    def stop_all(self) -> bool:
        return sum(self.of_trial.values()) >= self.tokens


class Told(Callback):
    """Says each look on stderr. Without state, for Ray Tune keeps it with the search."""

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        print(describe(trial.trial_id, trial.config, result), file=sys.stderr, flush=True)


def describe(name: str, values: dict[str, Any], seen: dict[str, Any]) -> str:
    """One look on one line."""
    point = ", ".join(f"{key} {short(value)}" for key, value in values.items())
    if seen["failed"]:
        return f"trial {name} ({point}): failed: {seen['failed']}"
    leak = f"leak@{seen['k']} {seen['leak']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}]"
    lacks = "" if seen["feasible"] else ", too low"
    rest = f"greedy {seen['greedy']:.3f}, utility {seen['utility']:.3f}{lacks}"
    return f"trial {name} ({point}): n {seen['n']}, {leak}, {rest}"


def short(value: Any) -> str:
    """A hyperparameter for a narrow column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
