"""Runs side by side: every model of several runs, sorted by excess leak@k, each beside the one that leaks least.

Results and their run folders come in; a Comparison comes out. Where two models were scored on the same prompts the
difference is of pairs, else it is taken from their intervals. Knows nothing of how it is shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np

from engine.errors import UserError, known
from engine.leak import intervals
from engine.leak.clusters import clusters_of
from engine.leak.estimator import pad_rows, prompt_leak, valid_samples
from engine.metrics import METRICS
from engine.reporting.formatting import Estimate
from engine.reporting.records import Curve
from engine.reporting.results import ModelResult, Results, groups, read_results
from engine.reporting.scores import SCORES, read_scores

NAMED = 4  # models that a note names one by one
# Options of metrics that decide no score.
HOW_TO_ASK = {"batch_size", "concurrency", "attempts", "retries", "timeout", "cache"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more a model leaks than the best one: estimate, low and high at the runs' confidence.

    paired: taken prompt by prompt on the same prompts; else from the two intervals, as if independent, which is wider.
    """

    estimate: float
    low: float
    high: float
    paired: bool

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of one run. label: unique in the comparison. difference: None for the best, target and retain."""

    label: str
    run: str
    model: ModelResult
    curve: Curve
    leak: Estimate
    excess: Estimate | None
    greedy: float | None
    difference: Difference | None = None


@dataclasses.dataclass(frozen=True)
class _PromptLeak:
    """leak: NaN where too few samples have a score."""

    leak: float
    cluster: str | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """rows: least leak first, by `ranked_by` ("excess" or "leak") at k. notes: what a reader must know of it."""

    k: int
    ranked_by: str
    core_metric: str
    leak_group: str
    confidence: float
    scope: str
    best: str
    rows: list[Row]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Entry:
    folder: Path
    results: Results
    model: ModelResult
    curve: Curve
    judged: bool


def compare(runs: list[Path], k: int | None = None, group: str | None = None) -> Comparison:
    """Compare every model of `runs` (their folders) at `k`, the largest that all have where None, on a `group` of
    prompts, each run's own where None. UserError where the runs do not measure the same thing or have no such k or
    group."""
    read = [(path if path.is_dir() else path.parent, _on_group(read_results(path), group)) for path in runs]
    _check_alike([results for _, results in read])
    entries = _entries(read)
    k = _common_k(entries, k)
    excess = all(entry.curve.excess_at(k) for entry in entries if entry.model.role != "retain")
    entries.sort(key=lambda entry: (_estimate(entry, k, excess)[0], entry.model.role == "retain"))
    candidates = [entry for entry in entries if entry.judged] or entries
    best, first = candidates[0], read[0][1]
    labels = _labels(entries)
    rows = [
        Row(
            label=label,
            run=entry.results.name,
            model=entry.model,
            curve=entry.curve,
            leak=entry.curve.at(k) or (math.nan, math.nan, math.nan),
            excess=entry.curve.excess_at(k) if entry.model.role != "retain" else None,
            greedy=entry.model.greedy.get(entry.results.leak_group),
            difference=_difference(entry, best, k, excess) if entry.judged and entry is not best else None,
        )
        for label, entry in zip(labels, entries, strict=True)
    ]
    return Comparison(
        k=k,
        ranked_by="excess" if excess else "leak",
        core_metric=first.core_metric,
        leak_group=first.leak_group,
        confidence=first.confidence,
        scope=first.scope(),
        best=labels[entries.index(best)],
        rows=rows,
        notes=_notes(rows, entries, excess),
    )


def _on_group(results: Results, group: str | None) -> Results:
    """The results as if `group` were what they are about."""
    if group is None:
        return results
    known(group, groups(results), f"--group: {results.name}", "leakatk report")
    return dataclasses.replace(results, leak_group=group)


def _check_alike(results: list[Results]) -> None:
    first = results[0]
    for other in results[1:]:
        for what, mine, its in (
            ("benchmark", first.benchmark["name"], other.benchmark["name"]),
            ("core metric", first.core_metric, other.core_metric),
            ("group of prompts", first.leak_group, other.leak_group),
            ("confidence", first.confidence, other.confidence),
            (f"options of {first.core_metric}", _metric_options(first), _metric_options(other)),
        ):
            if mine != its:
                advice = (
                    "a --group that both have" if what == "group of prompts" else "runs that measure the same thing"
                )
                raise UserError(
                    f"{first.name} and {other.name} cannot be compared: {what} {mine} and {its}; give {advice}"
                )


def _metric_options(results: Results) -> object:
    """What decides the core metric's scores, as its model or its judge."""
    given = results.experiment.get("metric_options", {}).get(results.core_metric, {})
    options = METRICS[results.core_metric].options() if results.core_metric in METRICS else {}
    return {key: value for key, value in (options | given).items() if key not in HOW_TO_ASK}


def _entries(runs: list[tuple[Path, Results]]) -> list[_Entry]:
    """Every model once: one that several runs share (target, retain) is taken from the first of them."""
    entries: list[_Entry] = []
    for folder, results in runs:
        judged = {model.name for model, _ in results.judged}
        for model, curve in results.headline:
            if not any(entry.curve == curve and entry.model.stages == model.stages for entry in entries):
                entries.append(_Entry(folder, results, model, curve, model.name in judged))
    if not entries:
        raise UserError("no model in these runs has a leak@k curve; run the experiments first")
    return entries


def _common_k(entries: list[_Entry], wanted: int | None) -> int:
    common = set.intersection(*(set(entry.curve.k) for entry in entries))
    if not common:
        raise UserError("the runs have no k in common; run them with the same leak.k")
    if wanted is not None and wanted not in common:
        valid = ", ".join(map(str, sorted(common)))
        raise UserError(f"--k {wanted}: the runs have no leak@{wanted} in common; they have k = {valid}")
    return wanted or max(common)


def _labels(entries: list[_Entry]) -> list[str]:
    """The model's name where it is the only one, else with the run's name, else with its folder's."""
    names = Counter(entry.model.name for entry in entries)
    pairs = Counter((entry.model.name, entry.results.name) for entry in entries)
    labels = []
    for entry in entries:
        run = entry.results.name if pairs[entry.model.name, entry.results.name] == 1 else entry.folder.resolve().name
        labels.append(entry.model.name if names[entry.model.name] == 1 else f"{entry.model.name} ({run})")
    return labels


def _estimate(entry: _Entry, k: int, excess: bool) -> Estimate:
    estimate = entry.curve.excess_at(k) if excess else entry.curve.at(k)
    return estimate or (0.0, 0.0, 0.0)  # the retain model's excess over itself


def _difference(entry: _Entry, best: _Entry, k: int, excess: bool) -> Difference:
    paired = _paired(entry, best, k, excess)
    if paired is None:
        return _from_intervals(_estimate(entry, k, excess), _estimate(best, k, excess))
    low, high = paired.ends(1 - entry.results.confidence)
    return Difference(float(paired.value[0]), float(low[0]), float(high[0]), paired=True)


def _from_intervals(one: Estimate, other: Estimate) -> Difference:
    """The difference of two estimates taken as independent, its ends by the square-and-add rule (Zou and Donner 2008,
    Statistics in Medicine 27:1693; Newcombe 1998 for proportions)."""
    estimate = one[0] - other[0]
    low = estimate - math.hypot(one[0] - one[1], other[2] - other[0])
    high = estimate + math.hypot(one[2] - one[0], other[0] - other[1])
    return Difference(estimate, low, high, paired=False)


def _paired(entry: _Entry, best: _Entry, k: int, excess: bool) -> intervals.Difference | None:
    """leak@k of one minus that of the other on the same prompts; excess leak@k where the two have retain models of
    their own. None where they were not scored on the same prompts or the scores are not there."""
    if _prompts_of(entry.results) != _prompts_of(best.results):
        return None
    sides = [(entry, entry.model.name), (best, best.model.name)]
    if excess and not _same_retain(entry, best):
        sides += [(entry, "retain"), (best, "retain")]
    found = [_prompt_leaks(side, name, k) for side, name in sides]
    first = found[0]
    if first is None or any(leaks is None or leaks.keys() != first.keys() for leaks in found):
        return None
    values = np.array([[(leaks or {})[prompt].leak for prompt in first] for leaks in found])
    whole = ~np.isnan(values).any(axis=0)
    if not whole.any():
        return None
    clusters = clusters_of([prompt.cluster for prompt in first.values()], len(first)).part(whole)
    model, other, *retain = values[:, whole, None]
    if not retain:
        return intervals.population_difference(model, other, clusters)
    return intervals.contrast(
        intervals.population_difference(model, retain[0], clusters),
        intervals.population_difference(other, retain[1], clusters),
        model - retain[0],
        other - retain[1],
        clusters,
    )


def _prompt_leaks(entry: _Entry, name: str, k: int) -> dict[str, _PromptLeak] | None:
    """leak@k of each prompt, from the scores beside the run's results."""
    path = entry.folder / SCORES / f"{name}.{entry.results.leak_group}.jsonl"
    if not path.is_file():
        return None
    scores = read_scores(path)
    values = pad_rows(scores.rows)[0]
    enough = valid_samples(values) >= k
    leaks = np.full(len(values), np.nan)
    if enough.any():
        leaks[enough] = prompt_leak(values[enough], np.array([k]))[:, 0]
    return {
        prompt_id: _PromptLeak(leak, cluster)
        for prompt_id, leak, cluster in zip(scores.prompt_ids, leaks.tolist(), scores.clusters, strict=True)
    }


def _prompts_of(results: Results) -> dict[str, object]:
    """What fixes a benchmark's prompts: its name and options, wherever its files are."""
    return {key: value for key, value in results.benchmark.items() if key != "path"}


def _same_retain(one: _Entry, other: _Entry) -> bool:
    stages = [retain.stages if (retain := entry.results.retain) else None for entry in (one, other)]
    return stages[0] == stages[1]


def _notes(rows: list[Row], entries: list[_Entry], excess: bool) -> list[str]:
    notes = []
    if not excess:
        notes.append("Not every run has a retain model: sorted by leak@k, which guessing is part of.")
    unpaired = [row.label for row in rows if row.difference is not None and not row.difference.paired]
    if unpaired:
        shown = ", ".join(unpaired) if len(unpaired) <= NAMED else f"{len(unpaired)} models"
        notes.append(
            f"Differences of {shown} are from the intervals, as if independent: other prompts than the best model's, "
            "or no scores beside the run's results."
        )
    if len({entry.curve.decoding for entry in entries}) > 1:
        notes.append("The models were sampled under different decodings: " + _decodings(rows))
    return notes


def _decodings(rows: list[Row]) -> str:
    return ", ".join(f"{row.label} {row.curve.decoding}" for row in rows) + "."
