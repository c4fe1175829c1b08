"""The core metrics by name: each turns (responses, references) into scores in [0, 1], or None where it failed.

A new metric is a file here and a line below. Heavy libraries are imported when a metric is first used.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

Scores = Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Metric:
    """compute(responses, references, prompts, *, options) -> one score or None for each; summary: one line."""

    summary: str
    compute: Callable[..., Scores]

    @property
    def options(self) -> list[str]:
        """Names of the keyword options of `compute`."""
        parameters = inspect.signature(self.compute).parameters.values()
        return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def score(
    metric: str,
    responses: Sequence[str | None],
    references: Sequence[str],
    prompts: Sequence[str] | None = None,
    **options: Any,
) -> list[float | None]:
    """The score of each response against its reference, in [0, 1]; None where it is missing or scoring failed.

    prompts: the question of each response, for metrics that read it (judge). options: keywords of the metric. Raises
    UserError for an unknown metric or option, ValueError for unequal lengths.
    """
    from engine.experiment import known

    known(metric, METRICS, "metric", "leakatk score --help")
    for option in options:
        known(option, METRICS[metric].options, f"options of {metric}", "leakatk score --help")
    prompts = [""] * len(responses) if prompts is None else prompts
    if not len(responses) == len(references) == len(prompts):
        raise ValueError(f"{len(responses)} responses, {len(references)} references, {len(prompts)} prompts")
    there = [index for index, response in enumerate(responses) if response is not None]
    values = METRICS[metric].compute(
        [responses[i] for i in there], [references[i] for i in there], [prompts[i] for i in there], **options
    )
    scores: list[float | None] = [None] * len(responses)
    for index, value in zip(there, values, strict=True):
        scores[index] = value
    return scores


def _exact_fact(responses: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Scores:
    from engine.metrics.exact import exact_fact

    return exact_fact(responses, references).tolist()


def _rouge_l_recall(responses: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Scores:
    from engine.metrics.rouge import rouge_l

    return rouge_l(responses, references).recall.tolist()


def _rouge_l_precision(responses: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Scores:
    from engine.metrics.rouge import rouge_l

    return rouge_l(responses, references).precision.tolist()


def _rouge_l_f1(responses: Sequence[str], references: Sequence[str], prompts: Sequence[str]) -> Scores:
    from engine.metrics.rouge import rouge_l

    return rouge_l(responses, references).f1.tolist()


METRICS = {
    "exact_fact": Metric("1 where the reference's words stand in the response, else 0", _exact_fact),
    "rouge_l_recall": Metric("ROUGE-L recall of the reference, as rouge-score", _rouge_l_recall),
    "rouge_l_precision": Metric("ROUGE-L precision of the response, as rouge-score", _rouge_l_precision),
    "rouge_l_f1": Metric("ROUGE-L F1, as rouge-score", _rouge_l_f1),
}
