"""Sample files of lm-evaluation-harness (--log_samples): samples_TASK_DATE.jsonl, and results_DATE.json beside it.

A path comes in, an ImportedLog comes out. A row is one question under one filter of the harness:
{"doc_id", "doc", "target", "arguments", "resps": [[text, ...]], "filter", "metrics": [name], name: value, ...}. Leakage
is looked for in `resps`, all that the model said; the harness scores what its filter left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.base import Decoding
from engine.errors import UserError
from engine.fingerprint import file_digest
from engine.jsonl import JsonObject, JsonValue, Reading, json_lines
from engine.reporting.eval_logs import NO_ITEMS, Recomputed
from engine.reporting.imported_log import GROUP, ImportedLog, Item

FIRST_BYTES = 2**20
NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")


def is_lm_eval(path: Path) -> bool:
    """Whether the first line of a file is a row of such samples."""
    try:
        with path.open("rb") as stream:
            row = json.loads(stream.readline(FIRST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"doc_id", "resps"} <= set(row)


def read_lm_eval_log(path: Path) -> ImportedLog:
    """A sample file. UserError where a line of it is no such row: a figure of some of the items would be another."""
    reading, rows = Reading(), []
    with json_lines(path, reading) as lines:
        for line in lines:
            if not isinstance(line.value, dict) or not {"doc_id", "resps"} <= set(line.value):
                reading.leave_out(line.number, "no row of doc_id and resps")
                continue
            rows.append(line.value)
    if reading.malformed:
        raise UserError(f"{path}: not whole ({reading.first_fault}); write the samples again")
    named = NAME.fullmatch(path.name)
    task = named["task"] if named else path.stem.removeprefix("samples_")
    beside = _beside(path.with_name(f"results_{named['date']}.json")) if named else {}
    items = _items(rows)
    sampled = max((len(item.responses) for item in items), default=1) > 1
    decoding = _decoding(rows[0], sampled)
    notes = [] if beside else ["no results_*.json beside the samples: what the harness states is not known"]
    if decoding is None:
        notes.append("the samples do not say how they were drawn; taken as " + ("T = 1" if sampled else "greedy"))
        decoding = Decoding() if sampled else Decoding(temperature=0.0)
    return ImportedLog(
        tool="lm-evaluation-harness",
        benchmark={"name": re.sub(r"[^\w.+-]+", "-", task)},
        items=tuple(items),
        figures=_figures(rows, task, beside),
        core_metric="rouge_l_recall",
        decoding=decoding,
        digest=file_digest(path),
        notes=tuple(notes),
    )


def _beside(path: Path) -> JsonObject:
    """What the harness wrote of the whole evaluation; empty where it is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _items(rows: list[JsonObject]) -> list[Item]:
    """Every question once, whatever filters it went through; none where the answers are likelihoods."""
    found: dict[str, Item] = {}
    for row in rows:
        target = row.get("target")
        reference = next(iter(target), None) if isinstance(target, list) else target
        texts = _texts(row["resps"])
        if not texts or not isinstance(reference, str) or str(row["doc_id"]) in found:
            continue
        document = row.get("doc")
        cluster = document.get("cluster") if isinstance(document, dict) else None
        found[str(row["doc_id"])] = Item(
            id=str(row["doc_id"]),
            group=GROUP,
            prompt=_prompt(row),
            reference=reference,
            responses=tuple(texts),
            cluster=cluster if isinstance(cluster, str) else None,
        )
    return list(found.values())


def _texts(resps: JsonValue) -> list[str]:
    """All answers to one question: a request's `repeats`."""
    requests = resps if isinstance(resps, list) else []
    answers = [each for request in requests for each in (request if isinstance(request, list) else [request])]
    return answers if all(isinstance(each, str) for each in answers) else []


def _request(row: JsonObject) -> list[JsonValue]:
    """The text and the settings that the model was given, in the form of either age of the harness."""
    given = row.get("arguments")
    if isinstance(given, dict):
        first: JsonValue = next(iter(given.values()), {})
        return list(first.values()) if isinstance(first, dict) else []
    return list(given[0]) if isinstance(given, list) and given and isinstance(given[0], list) else []


def _prompt(row: JsonObject) -> str:
    request = _request(row)
    return request[0] if request and isinstance(request[0], str) else json.dumps(row.get("doc"), ensure_ascii=False)


def _decoding(row: JsonObject, sampled: bool) -> Decoding | None:
    """How the model was sampled, None where the row does not tell."""
    settings = next((each for each in _request(row)[1:] if isinstance(each, dict)), None)
    if settings is None or (sampled and "temperature" not in settings and not settings.get("do_sample")):
        return None
    temperature = settings.get("temperature", 1.0 if settings.get("do_sample") else 0.0)
    given = {"temperature": temperature, "top_p": settings.get("top_p") or 1.0, "top_k": settings.get("top_k") or None}
    if temperature == 0 or not settings.get("do_sample", True):
        given = {"temperature": 0.0}
    try:
        return Decoding(**given)
    except ValueError:
        return None


def _figures(rows: list[JsonObject], task: str, beside: Mapping[str, JsonValue]) -> Recomputed:
    """The mean of every metric over the rows of each filter, under the harness's own names, "metric,filter"."""
    values: dict[str, list[JsonValue]] = {}
    for row in rows:
        names = row["metrics"] if isinstance(row.get("metrics"), list) else []
        for metric in (name for name in names if isinstance(name, str)):
            values.setdefault(f"{metric},{row.get('filter', 'none')}", []).append(row.get(metric))
    stated = (beside.get("results") or {}).get(task) or {}
    listed = ((beside.get("configs") or {}).get(task) or {}).get("metric_list") or []
    aggregations = {each.get("metric"): each.get("aggregation", "mean") for each in listed}
    metrics: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name, column in values.items():
        aggregation = aggregations.get(name.partition(",")[0], "mean")
        numbers = [float(each) for each in column if isinstance(each, int | float)]
        metrics[name] = sum(numbers) / len(numbers) if len(numbers) == len(column) else None
        if aggregation != "mean":
            metrics[name], missing[name] = None, f"is aggregated by {aggregation}, which is not computed here"
        elif metrics[name] is None:
            missing[name] = NO_ITEMS
    said = {name: float(stated[name]) if isinstance(stated.get(name), int | float) else None for name in metrics}
    return Recomputed(metrics, said, missing)
