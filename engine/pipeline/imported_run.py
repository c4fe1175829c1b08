"""Others' logs as runs: the answers that a log holds are scored, leak@k is taken of them, the run's folder is written.

An ImportedLog, and the retain model's, come in; a WrittenRun comes out, whose samples and scores stand in the store as
those of any run. Nothing is sampled or trained; no cluster is started.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.base import Probe, is_leak_group
from engine.cluster.units import counted, timed, unit_counts, unit_path, unit_seconds, write_unit
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation
from engine.evaluation.stored import evaluation_of_scores
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.leak.estimator import default_k
from engine.pipeline.finish import WrittenRun, finish_run
from engine.reporting.imported_log import ImportedLog, Item
from engine.reporting.openunlearning_log import OUR_NAMES
from engine.reporting.results import ModelResult, ModelResults, Results, generations_stage, scores_stage
from engine.stages.sample import prompt_columns
from engine.stages.score import GroupScores, group_scores, score_job
from engine.store.store import FinishedStage, Store

IMPORT_VERSION = 1  # part of every import's fingerprint: raise it when other items are read of a log
UTILITY_GROUPS = ("retain", "retain_knowmem")  # whose greedy score is the utility where a log gives no model utility
Value = TypeVar("Value")
SHORT = "the log holds fewer answers to this prompt"


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A log whose answers stand in the store with their scores, by group."""

    log: ImportedLog
    generations: FinishedStage
    scores: FinishedStage
    by_group: dict[str, GroupScores]


def imported_run(log: ImportedLog, retain: ImportedLog | None, name: str, store: Store, metric: str) -> WrittenRun:
    """Write the run that `log` amounts to: one model called `name`, and the retain model where its log is given.

    metric: what answers are scored by. UserError for a log without answers, and for two of different prompts.
    """
    group = log.leak_group
    if not log.answers:
        raise UserError(f"{name}: the log holds no answers in words about what was to be forgotten, so it makes no run")
    if retain is not None:
        retain = _in_order(retain, log)
    experiment = _experiment(log, name, metric)
    scored = [_scored(each, metric, store) for each in (log, retain) if each is not None]
    evaluations = [_evaluation(each, experiment, metric) for each in scored]
    baseline = evaluations[1] if evaluations[1:] else None
    roles = ((name, "unlearned"), ("retain", "retain"))
    rows = [
        _row(each, experiment, evaluation, baseline, metric, store.root, *role)
        for each, evaluation, role in zip(scored, evaluations, roles, strict=False)
    ]
    results = Results(
        name=name,
        fingerprint=fingerprint([metric, *(each.generations.fingerprint for each in scored)]),
        benchmark=log.benchmark,
        core_metric=metric,
        leak_group=group,
        confidence=experiment.leak.confidence,
        models=ModelResults(rows),
        failed={},
        seconds=0.0,
        experiment=experiment.model_dump(mode="json"),
        clusters=_clusters(log),
    )
    return finish_run(results, store)


def run_name(wanted: str) -> str:
    """The nearest name that a run may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:80] or "imported"


def _in_order(retain: ImportedLog, log: ImportedLog) -> ImportedLog:
    """The retain model's log with its answers about the forget set in the order of the other log's prompts."""
    wanted = {(item.group, item.id): item.reference for item in log.items if is_leak_group(item.group)}
    there = {(item.group, item.id): item for item in retain.items}
    lacking = [key for key, reference in wanted.items() if key not in there or there[key].reference != reference]
    extra = {key for key in there if is_leak_group(key[0])} - set(wanted)
    if lacking or extra:
        first = "/".join(lacking[0] if lacking else min(extra))
        raise UserError(
            f"--retain: the two logs are not of the same prompts: {len(lacking)} only in the model's, {len(extra)} "
            f"only in the retain model's (first: {first!r}); give the retain model's log on the same forget set"
        )
    others = tuple(item for item in retain.items if not is_leak_group(item.group))
    return dataclasses.replace(retain, items=(*(there[key] for key in wanted), *others))


def _experiment(log: ImportedLog, name: str, metric: str) -> Experiment:
    """What was asked, as far as the log tells: k as far as every prompt has answers."""
    about = [item for item in log.items if is_leak_group(item.group)]
    fewest = min(sum(answer is not None for answer in item.responses) for item in about)
    document = {
        "name": name,
        "benchmark": log.benchmark,
        "sampling": {"n": max(len(item.responses) for item in about), "decoding": [log.decoding.model_dump()]},
        "metrics": [metric],
        "leak": {"k": default_k(max(fewest, 1)).tolist()},
    }
    return Experiment.model_validate(document)


def _clusters(log: ImportedLog) -> dict[str, str]:
    return {item.id: item.cluster for item in log.items if item.cluster is not None and is_leak_group(item.group)}


def _scored(log: ImportedLog, metric: str, store: Store) -> _Scored:
    """The log's answers and their scores as finished stages."""
    items = [[item.group, item.id, item.prompt, item.reference, list(item.responses)] for item in log.items]
    inputs: JsonObject = {"log": log.digest, "items": fingerprint(items), "version": IMPORT_VERSION}
    generations = store.stage("import", inputs, lambda work: _write_items(log.items, work))
    job = score_job(generations, metric, {})

    def build(work: Path) -> JsonObject:
        (work / "units").mkdir(exist_ok=True)
        for unit in range(job.units):
            clock = time.monotonic()
            table, _ = job.compute(unit)
            write_unit(timed(table, time.monotonic() - clock), unit_path(work / "units", unit))
        failures = unit_counts(work / "units")
        return {"failed": sum(failures.values()), "failures": failures, "seconds": unit_seconds(work / "units")}

    scores = store.stage(job.kind, job.inputs(), build)
    return _Scored(log, generations, scores, group_scores(scores.path))


def _write_items(items: tuple[Item, ...], work: Path) -> JsonObject:
    """One unit a group, as samples are kept: an answer that is not there is null, with the reason."""
    import pyarrow

    (work / "units").mkdir(exist_ok=True)
    for unit, group in enumerate(dict.fromkeys(item.group for item in items)):
        chosen = [item for item in items if item.group == group]
        n = max(len(item.responses) for item in chosen)
        answers = [answer for item in chosen for answer in (*item.responses, *[None] * (n - len(item.responses)))]
        probes = tuple(Probe(item.id, item.prompt, item.reference, group) for item in chosen)
        columns = prompt_columns(probes, n) | {
            "response": pyarrow.array(answers, pyarrow.string()),
            "token_ids": pyarrow.nulls(len(answers), pyarrow.list_(pyarrow.int32())),
            "tokens": pyarrow.nulls(len(answers), pyarrow.int32()),
            "logprob": pyarrow.nulls(len(answers), pyarrow.float64()),
            "model_logprob": pyarrow.nulls(len(answers), pyarrow.float64()),
            "finish": pyarrow.nulls(len(answers), pyarrow.string()),
            "failure": pyarrow.array([SHORT if answer is None else None for answer in answers], pyarrow.string()),
        }
        table = counted(pyarrow.table(columns), {"tokens": 0})
        write_unit(timed(table, 0.0), unit_path(work / "units", unit))
    return {"prompts": len(items), "samples": sum(len(item.responses) for item in items), "tokens": 0, "seconds": 0.0}


def _evaluation(scored: _Scored, experiment: Experiment, metric: str) -> Evaluation:
    decoding = scored.log.decoding.name
    by_key = {(group, metric, decoding): of for group, of in scored.by_group.items() if is_leak_group(group)}
    failures = scored.scores.facts["failures"]
    return evaluation_of_scores(experiment, by_key, _clusters(scored.log), failures)


def _row(
    scored: _Scored,
    experiment: Experiment,
    evaluation: Evaluation,
    baseline: Evaluation | None,
    metric: str,
    root: Path,
    name: str,
    role: str,
) -> ModelResult:
    log, decoding = scored.log, scored.log.decoding
    means = {
        group: float(np.nanmean(of.scores)) for group, of in scored.by_group.items() if np.isfinite(of.scores).any()
    }
    greedy = means if decoding.greedy else {}
    stages = {generations_stage(decoding.name): scored.generations, scores_stage(decoding.name, metric): scored.scores}
    figures = log.figures
    utility = figures.metrics.get("model_utility")
    if utility is None:
        utility = next((greedy[group] for group in UTILITY_GROUPS if group in greedy), None)
    return ModelResult(
        name=name,
        role=role,
        method={"name": f"imported from {log.tool}"},
        greedy=greedy,
        curves=curves(experiment, evaluation, baseline),
        utility=utility,
        tokens=0,
        seconds=0.0,
        stages={key: stage.path.relative_to(root).as_posix() for key, stage in stages.items()},
        metrics=_ours(figures.metrics),
        missing=_ours(figures.missing),
        failures=evaluation.failures,
        notes=[_origin(log, experiment), *log.notes, *_differences(log)],
    )


def _ours(by_name: Mapping[str, Value]) -> dict[str, Value]:
    """By our names; signs that MLflow takes in no name, as in lm-evaluation-harness's "metric,filter", are points."""
    return {OUR_NAMES.get(name, re.sub(r"[^\w.:/ -]", ".", name)): value for name, value in by_name.items()}


def _origin(log: ImportedLog, experiment: Experiment) -> str:
    n, k = experiment.sampling.n, max(experiment.leak.k or (1,))
    held = "one answer a prompt" if n == 1 else f"up to {n} answers a prompt"
    return f"imported from a log of {log.tool} that holds {held}; nothing was sampled here, so k ends at {k}"


def _differences(log: ImportedLog) -> list[str]:
    """The figures that the log states otherwise than its items give."""
    return [
        f"the log states {name} {stated:.4g}, its items give {value:.4g}"
        for name, (value, stated) in log.figures.differing().items()
    ]
