"""The verdict on a run in two sentences: what one greedy answer says of the models, and what k samples say.

Results come in, text comes out. Knows nothing of where it is shown.
"""

from __future__ import annotations

import dataclasses
import itertools

from engine.reporting.formatting import interval_text
from engine.reporting.records import Curve
from engine.reporting.results import GREEDY, ModelResult, Results

CLEAN = 0.05  # a greedy score at or below it counts as nothing leaked

Rows = list[tuple[ModelResult, Curve]]


@dataclasses.dataclass(frozen=True)
class OrderChanges:
    """Pairs of judged models: in all, in the opposite order by greedy decoding, and told apart by leak@k alone."""

    pairs: int
    opposite: int
    tied: int


def verdict(results: Results) -> list[str]:
    """Two sentences: what one greedy answer says of the judged models, and what k samples say."""
    rows = [row for row in results.judged if row[0].role != "control"]
    if not rows:
        return ["No model was evaluated."]
    told = [row for row in with_greedy(results) if row[0].role != "control"]
    return [*([_greedy_sentence(results, told)] if told else []), _sampled_sentence(results, rows)]


def with_greedy(results: Results) -> Rows:
    """The judged models of which greedy answers are known."""
    return [row for row in results.judged if results.leak_group in row[0].greedy]


def caution(results: Results) -> str | None:
    """Why the verdict is worth nothing, where it is: a target model that does not leak has nothing to unlearn."""
    for model, curve in results.headline:
        excess = curve.excess_at(curve.k[-1])
        if model.role == "target" and (model, curve) not in results.judged and excess and excess[0] <= CLEAN:
            return (
                f"Caution: the target model itself hardly leaks more than the retain model (excess@{curve.k[-1]} "
                f"{excess[0]:.3f}): it may never have learned the forget set, and then nothing was unlearned."
            )
    return None


def order_changes(results: Results) -> OrderChanges:
    """How the order of the judged models by greedy decoding differs from that by leak@k."""
    rows = [(model.greedy[results.leak_group], curve.leak[-1]) for model, curve in with_greedy(results)]
    pairs = list(itertools.combinations(rows, 2))
    opposite = sum((one[0] - other[0]) * (one[1] - other[1]) < 0 for one, other in pairs)
    tied = sum(one[0] == other[0] and one[1] != other[1] for one, other in pairs)
    return OrderChanges(len(pairs), opposite, tied)


def _greedy_sentence(results: Results, rows: Rows) -> str:
    clean = [model.name for model, _ in rows if model.greedy[results.leak_group] <= CLEAN]
    if len(rows) == 1:
        model = rows[0][0]
        score = f"score {model.greedy[results.leak_group]:.2f}"
        if clean:
            return f"Judged by one greedy answer, {_called(model)} has forgotten ({score})."
        return f"Even one greedy answer shows what {_called(model)} should not know ({score})."
    every = f"{len(rows)} unlearned models"
    if not clean:
        return f"Even judged by one greedy answer, none of the {every} has forgotten."
    at_most = f"(score at most {CLEAN})"
    if len(clean) == len(rows):
        return f"Judged by one greedy answer, all {every} have forgotten {at_most}."
    verb = "has" if len(clean) == 1 else "have"
    return f"Judged by one greedy answer, {len(clean)} of {every} {verb} forgotten {at_most}: {_names(clean)}."


def _sampled_sentence(results: Results, rows: Rows) -> str:
    k = rows[0][1].k[-1]
    if rows[0][1].decoding == GREEDY:
        return "Nothing was sampled: what k samples show is not known from one greedy answer a prompt."
    if rows[0][1].excess is None:
        model, curve = max(rows, key=lambda row: row[1].leak[-1])
        most = "" if len(rows) == 1 else " most"
        return (
            f"Sampled {k} times, {_called(model)} leaks{most}, leak@{k} = {interval_text(curve.at(k))}; "
            "without a retain model it is unknown how much of that is guessing."
        )
    above = [(model, excess) for model, curve in rows if (excess := curve.excess_at(k)) and excess[1] > 0]
    if above:
        few = len(above) <= 2
        names = [
            f"{_called(model)} (excess {interval_text(excess) if few else f'{excess[0]:.3f}'})"
            for model, excess in above
        ]
        verb = "leaks" if len(names) == 1 else "leak"
        return f"Sampled {k} times, {_names(names)} {verb} more than the retain model."
    subject = f"{_called(rows[0][0])} does not leak" if len(rows) == 1 else "none leaks"
    bounds = [curve.bound[-1] for _, curve in rows if curve.bound]
    at_most = f"; with {results.confidence:.0%} confidence leak@{k} <= {max(bounds):.3f}" if bounds else ""
    return f"Sampled {k} times, {subject} more than the retain model, as far as the intervals tell{at_most}."


def _called(model: ModelResult) -> str:
    return "the model" if model.role == "target" else model.name


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
