"""The core metrics by name: each turns (responses, references) into scores in [0, 1], or None where it failed.

A new metric is a file here and a line below. Heavy libraries are imported when a metric is first used.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Failed:
    """In place of a score: the metric could not tell, and why (few words, the same for the same cause)."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Metric:
    """`function` of engine.metrics.`module`, its `field` where it gives several, with `preset` options.

    reads_fact: compares with the probe's fact where it has one, else with the whole reference. reads_prompt: takes the
    prompts as a third argument. version: of its formula: raised with it, so that a store's scores by the one before are
    not found. by_rouge: ROUGE decides, which cannot see references in other scripts than Latin: they
    give no score.
    """

    summary: str
    module: str
    function: str
    field: str | None = None
    preset: tuple[tuple[str, object], ...] = ()
    reads_fact: bool = False
    reads_prompt: bool = False
    by_rouge: bool = False
    version: int = 1

    def load(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(f"engine.metrics.{self.module}"), self.function)

    def truth(self, reference: str, fact: str | None) -> str:
        """What a response is compared with, of a probe's reference and its fact."""
        return fact or reference if self.reads_fact else reference

    def options(self) -> dict[str, object]:
        """The metric's options with their defaults; inspect.Parameter.empty where one must be given."""
        parameters = inspect.signature(self.load()).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} | dict(self.preset)

    def blindness(self, reference: str, options: Mapping[str, object]) -> str | None:
        """Why this metric cannot tell whether a response gives the reference; None where it can, as far as is known
        without a model."""
        from engine.metrics.rouge import BLIND, is_blind_to

        filters = (dict(self.preset) | dict(options)).get("rouge_filter") is not None
        return BLIND if (self.by_rouge or filters) and is_blind_to(reference) else None


METRICS = {
    "exact_fact": Metric(
        "1 where the fact's words stand in the response, else 0", "exact", "exact_fact", reads_fact=True
    ),
    "rouge_l_recall": Metric(
        "ROUGE-L recall of the reference, as rouge-score", "rouge", "rouge_l", "recall", by_rouge=True
    ),
    "rouge_l_precision": Metric(
        "ROUGE-L precision of the response, as rouge-score", "rouge", "rouge_l", "precision", by_rouge=True
    ),
    "rouge_l_f1": Metric("ROUGE-L F1, as rouge-score", "rouge", "rouge_l", "f1", by_rouge=True),
    "rouge_l_f1_unstemmed": Metric(
        "ROUGE-L F1 of words as they are, as MUSE's own code",
        "rouge",
        "rouge_l",
        "f1",
        preset=(("stemmer", False),),
        by_rouge=True,
    ),
    "entailment": Metric("1 where an NLI model reads the reference out of the response", "entailment", "entailment"),
    "entailment_es": Metric(
        "the paper's ES: entailment, but 0 where ROUGE-L recall is below 0.1",
        "entailment",
        "entailment",
        preset=(("rouge_filter", 0.1),),
    ),
    "fluency": Metric("probability that a gibberish classifier finds the response clean", "fluency", "fluency"),
    "cosine": Metric("cosine similarity of sentence embeddings, at least 0", "cosine", "cosine"),
    "judge": Metric("LLM judge: does the response reveal the reference? 0 or 1", "judge", "judge", reads_prompt=True),
    "judge_graded": Metric(
        "LLM judge: unrelated 0, relevant 0.5, explicit 1",
        "judge",
        "judge",
        preset=(("rubric", "graded"),),
        reads_prompt=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """scores: one in [0, 1] for each response, None = failed; failures: how many failed, by reason."""

    scores: list[float | None]
    failures: Counter[str]


def score(
    metric: str, responses: Sequence[str | None], references: Sequence[str], **options: Any
) -> list[float | None]:
    """The score of each response against its reference, in [0, 1]; None where it is missing or scoring failed."""
    return score_counted(metric, responses, references, **options).scores


def score_counted(
    metric: str,
    responses: Sequence[str | None],
    references: Sequence[str],
    prompts: Sequence[str] | None = None,
    **options: object,
) -> Scored:
    """`score` with the reasons of the failures. responses: None = missing sample. options: keywords of the metric.

    prompts: the question of each response, for metrics that read it. Raises UserError for an unknown metric or option,
    ValueError for unequal lengths and what the metric itself refuses.
    """
    chosen = find_metric(metric, options)
    prompts = [""] * len(responses) if prompts is None else prompts
    if not len(responses) == len(references) == len(prompts):
        raise ValueError(f"{len(responses)} responses, {len(references)} references, {len(prompts)} prompts")
    scores: list[float | None] = [None] * len(responses)
    why = {reference: chosen.blindness(reference, options) for reference in set(references)}
    failures = Counter[str]()
    there: list[int] = []
    for index, (response, reference) in enumerate(zip(responses, references, strict=True)):
        if reason := "no response" if response is None else why[reference]:
            failures[reason] += 1
        else:
            there.append(index)
    columns = [responses, references, prompts] if chosen.reads_prompt else [responses, references]
    found = chosen.load()(*([column[i] for i in there] for column in columns), **dict(chosen.preset) | options)
    for index, value in zip(there, getattr(found, chosen.field) if chosen.field else found, strict=True):
        if isinstance(value, Failed):
            failures[value.reason] += 1
        else:
            scores[index] = float(value)
    return Scored(scores, failures)


def check_metric(name: str, options: dict[str, object]) -> None:
    """UserError, named by the option that asks for it, unless what the metric loads is there and is what it needs.
    Reads a model's configuration alone."""
    metric = find_metric(name, options)
    check = getattr(importlib.import_module(f"engine.metrics.{metric.module}"), "check", None)
    if check is not None:
        check(f"metric_options.{name}.model", **{**metric.options(), **options})


def known_by(name: str, options: Mapping[str, object]) -> dict[str, str]:
    """What decides a metric's scores beside its options, for fingerprints: its version from 2 on, the content of its
    model, or the server that it asks; empty for all others."""
    metric = METRICS[name]
    version = {"metric_version": str(metric.version)} if metric.version > 1 else {}
    identity = getattr(importlib.import_module(f"engine.metrics.{metric.module}"), "identity", None)
    if identity is None:
        return version
    where = f"metric_options.{name}.model"
    return version | {"metric_by": identity(where, **{**metric.options(), **options})}


def find_metric(name: str, options: dict[str, object] | None = None) -> Metric:
    """The metric of this name, its options checked: UserError with the nearest valid name, or the option missing."""
    from engine.errors import UserError, known

    known(name, METRICS, "metric", "leakatk score --help")
    metric = METRICS[name]
    valid = metric.options()
    for option, value in (options or {}).items():
        known(option, valid, f"options of {name}", "leakatk score --help")
        if isinstance(valid[option], int | float) and not (isinstance(value, int | float) and value > 0):
            raise UserError(f"options of {name}: {option} must be a positive number, found {value!r}")
    missing = [option for option, default in valid.items() if default is inspect.Parameter.empty]
    missing = [option for option in missing if option not in (options or {})]
    if missing:
        raise UserError(
            f"metric {name} needs {', '.join(missing)}; give --option {missing[0]}=... (in an experiment: "
            f"metric_options.{name}.{missing[0]})"
        )
    return metric
