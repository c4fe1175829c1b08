"""The core metrics by name: each turns (responses, references) into scores in [0, 1], or None where it failed.

A new metric is a file here and a line below. Heavy libraries are imported when a metric is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Scores = Sequence[float | None]


def _exact_fact(responses: Sequence[str], references: Sequence[str]) -> Scores:
    from engine.metrics.exact import exact_fact

    return exact_fact(responses, references).tolist()


def _rouge_l_recall(responses: Sequence[str], references: Sequence[str]) -> Scores:
    from engine.metrics.rouge import rouge_l

    return rouge_l(responses, references).recall.tolist()


def _rouge_l_f1(responses: Sequence[str], references: Sequence[str]) -> Scores:
    from engine.metrics.rouge import rouge_l

    return rouge_l(responses, references).f1.tolist()


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Scores]] = {
    "exact_fact": _exact_fact,
    "rouge_l_recall": _rouge_l_recall,
    "rouge_l_f1": _rouge_l_f1,
}


def score(metric: str, responses: Sequence[str], references: Sequence[str]) -> list[float | None]:
    """The score of each response against its reference, in [0, 1]; None where the metric failed on it."""
    return list(METRICS[metric](responses, references))
