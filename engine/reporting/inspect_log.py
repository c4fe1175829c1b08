"""Logs of Inspect (inspect_ai), .eval or .json, read by its own reader where that is installed.

A path comes in, an ImportedLog comes out: epochs of a sample are samples of one prompt. Knows nothing of how Inspect
writes its files.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any  # Inspect's types are there only where it is installed

from benchmarks.base import Decoding
from engine.errors import UserError, one_line
from engine.fingerprint import file_digest
from engine.reporting.eval_logs import Recomputed
from engine.reporting.imported_log import GROUP, ImportedLog, Item

VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partial, incorrect, no answer
MEANS = ("accuracy", "mean")  # metrics that are means over the samples


def is_inspect(path: Path) -> bool:
    """Whether a file is such a log, by its name or by its first keys."""
    if path.suffix == ".eval":
        return True
    try:
        with path.open(encoding="utf-8-sig") as stream:
            start = stream.read(2**16)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(re.match(r'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:', start)) and '"eval"' in start


def read_inspect_log(path: Path) -> ImportedLog:
    """A log. UserError where inspect_ai is not installed or cannot read it."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise UserError(
            f"{path}: a log of Inspect, which its own reader reads; install it beside leakatk: pip install inspect_ai"
        ) from error
    try:
        log = read_eval_log(str(path))
    except Exception as error:  # whatever its reader raises of a broken file
        raise UserError(f"{path}: Inspect's reader cannot read it ({one_line(str(error))[:160]})") from error
    samples = list(log.samples or [])
    items, notes = _items(samples), []
    if log.status != "success":
        notes.append(f"the evaluation ended as {log.status}: its figures are of a part of it")
    decoding = _decoding(log)
    if decoding is None:
        notes.append("the log does not say the temperature, which is the server's own; taken as T = 1")
    return ImportedLog(
        tool="Inspect",
        benchmark={"name": re.sub(r"[^\w.+-]+", "-", str(log.eval.task).rpartition("/")[2]) or "inspect"},
        items=tuple(items),
        figures=_figures(log, samples),
        core_metric="rouge_l_recall",
        decoding=decoding or Decoding(),
        digest=file_digest(path),
        notes=tuple(notes),
    )


def _items(samples: list[Any]) -> list[Item]:
    """Every sample id once, with the answers of its epochs in their order; none of an epoch that failed."""
    found: dict[str, list[Any]] = {}
    for sample in sorted(samples, key=lambda sample: sample.epoch):
        found.setdefault(str(sample.id), []).append(sample)
    items = []
    for identity, epochs in found.items():
        first = epochs[0]
        target = first.target if isinstance(first.target, str) else next(iter(first.target), "")
        cluster = first.metadata.get("cluster") if isinstance(first.metadata, dict) else None
        answers = tuple(None if _failed(each) else str(each.output.completion) for each in epochs)
        items.append(Item(identity, GROUP, _prompt(first.input), target, answers, cluster))
    return items


def _failed(sample: Any) -> bool:
    return getattr(sample, "error", None) is not None or not sample.output.choices


def _prompt(given: Any) -> str:
    """The input's text: of a conversation its last turn."""
    if isinstance(given, str):
        return given
    content = given[-1].content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else str(getattr(part, "text", "")) for part in parts)


def _decoding(log: Any) -> Decoding | None:
    configs = (log.plan.config, log.eval.model_generate_config)

    def setting(name: str) -> Any:
        values = (getattr(config, name, None) for config in configs)
        return next((value for value in values if value is not None), None)

    temperature = setting("temperature")
    if temperature is None:
        return None
    top_p = setting("top_p")
    return Decoding(temperature=temperature, top_p=1.0 if top_p is None else top_p, top_k=setting("top_k"))


def _figures(log: Any, samples: list[Any]) -> Recomputed:
    """Every metric that the log states, as scorer.metric; computed are those that are means over the samples."""
    metrics: dict[str, float | None] = {}
    stated: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    reducer = list(getattr(log.eval.config, "epochs_reducer", None) or ["mean"])
    for score in log.results.scores if log.results is not None else []:
        for metric in _values(score.metrics):
            name = f"{score.name}.{metric.name}"
            stated[name] = float(metric.value) if math.isfinite(metric.value) else None
            metrics[name] = None
            if metric.name not in MEANS:
                missing[name] = "is not computed here"
            elif reducer != ["mean"]:
                missing[name] = f"epochs are reduced by {', '.join(map(str, reducer))}, which is not computed here"
            else:
                metrics[name] = _mean(samples, score.scorer if score.name == score.scorer else score.name)
                if metrics[name] is None:
                    missing[name] = "the scores of its samples are no numbers"
    return Recomputed(metrics, stated, missing)


def _values(metrics: Any) -> list[Any]:
    return list((metrics if isinstance(metrics, dict) else vars(metrics)).values())


def _mean(samples: list[Any], scorer: str) -> float | None:
    """The mean over sample ids of the mean over their epochs, of those that have a score."""
    by_id: dict[str, list[float]] = {}
    for sample in samples:
        scores = sample.scores or {}
        score = scores.get(scorer) if isinstance(scores, dict) else getattr(scores, scorer, None)
        value = None if score is None else _number(score.value)
        if value is not None:
            by_id.setdefault(str(sample.id), []).append(value)
    means = [math.fsum(values) / len(values) for values in by_id.values()]
    return math.fsum(means) / len(means) if means else None


def _number(value: Any) -> float | None:
    """A score as Inspect reduces it: letters of grades are numbers."""
    if isinstance(value, str):
        try:
            return VALUES[value] if value in VALUES else float(json.loads(value))
        except (ValueError, TypeError):
            return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
