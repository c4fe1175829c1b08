"""Recording a finished run in MLflow: one parent run, a child for each model, a grandchild for each round of RULE.

Results and their folder come in; nothing comes out but the tracking URI. Idempotent by fingerprint: a run that was
recorded is found again, one that was half recorded is replaced. Only the driver calls this.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.base import Decoding
from engine.evaluate import decoding_name
from engine.results import Curve, ModelResult, Results
from engine.store import write_atomic

EXPERIMENT = "leakatk"
MARK = "mlflow.json"
LARGEST_MODEL_COPY = 64 * 2**20  # bytes; larger models are recorded by their path
BATCH = 900  # MLflow takes at most 1000 metrics a call


def tracking_uri(store_root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root / 'mlflow.db'}"


def record(results: Results, folder: Path, store_root: Path) -> str:
    """Record `results`, whose report and picture stand in `folder`; returns the tracking URI."""
    uri = tracking_uri(store_root)
    mark = folder / MARK
    if mark.exists() and json.loads(mark.read_text()).get("uri") == uri:
        return uri
    import logging

    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        experiment_id = experiment.experiment_id
        _delete_older(client, experiment_id, results.fingerprint)
    else:
        location = (store_root / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
    parent = _start(client, experiment_id, results.name, results, {"kind": "experiment"})
    _log_params(client, parent, results.experiment)
    for model in results.models:
        _record_model(client, experiment_id, parent, results, model, store_root)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != MARK:
            client.log_artifact(parent, str(path))
    client.set_terminated(parent)
    write_atomic(mark, json.dumps({"uri": uri, "run": parent}))
    return uri


def _delete_older(client: Any, experiment_id: str, fingerprint: str) -> None:
    """Remove what an interrupted recording of the same results left."""
    found = client.search_runs([experiment_id], f"tags.`leakatk.fingerprint` = '{fingerprint}'", max_results=1000)
    for run in found:
        client.delete_run(run.info.run_id)


def _start(client: Any, experiment_id: str, name: str, results: Results, tags: dict[str, str]) -> str:
    tags = {
        "mlflow.runName": name,
        "leakatk.fingerprint": results.fingerprint,
        "leakatk.benchmark": results.benchmark["name"],
        **{key if key.startswith("mlflow.") else f"leakatk.{key}": value for key, value in tags.items()},
    }
    return str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)


def _record_model(
    client: Any, experiment_id: str, parent: str, results: Results, model: ModelResult, store_root: Path
) -> None:
    tags = {"mlflow.parentRunId": parent, "kind": model.role, "method": str(model.method.get("name", model.role))}
    run = _start(client, experiment_id, model.name, results, tags)
    _log_params(client, run, {"method": model.method, "role": model.role})
    scalars = {"utility": model.utility, "tokens_sampled": model.tokens, "seconds": model.seconds, "steps": model.steps}
    scalars |= {f"greedy.{group}": value for group, value in model.greedy.items()}
    scalars |= {name: value for name, value in model.metrics.items() if value is not None}
    metrics = [(key, float(value), 0) for key, value in scalars.items()]
    for curve in model.curves:
        metrics += _curve_metrics(curve, _suffix(results, curve))
    metrics += _history(Path(model.stages["model"]))
    for round_ in model.rounds:
        for key in ("leak_at_m", "leaking_samples", "pool", "tokens"):
            metrics.append((f"rule.{key}", float(round_[key]), int(round_["round"])))
        _record_round(client, experiment_id, run, results, round_)
    _log_metrics(client, run, metrics)
    _log_model(client, run, Path(model.stages["model"]))
    for name, path in model.stages.items():
        client.set_tag(run, f"leakatk.folder.{name.replace(' ', '.')}", str(store_root / path))
    client.set_terminated(run)


def _record_round(client: Any, experiment_id: str, method_run: str, results: Results, round_: dict[str, Any]) -> None:
    tags = {"mlflow.parentRunId": method_run, "kind": "round"}
    run = _start(client, experiment_id, f"round {round_['round']}", results, tags)
    values = {key: value for key, value in round_.items() if isinstance(value, (int, float))}
    _log_metrics(client, run, [(key, float(value), 0) for key, value in values.items()])
    client.set_terminated(run)


def _suffix(results: Results, curve: Curve) -> str:
    """What tells this curve from the headline: leak_at_k.<metric> is the headline's own name."""
    headline = decoding_name(Decoding(**results.experiment["sampling"]["decoding"][0]))
    suffix = "" if curve.group == results.leak_group else f".{curve.group}"
    return suffix if curve.decoding == headline else f"{suffix}.{curve.decoding}"


def _curve_metrics(curve: Curve, suffix: str) -> list[tuple[str, float, int]]:
    """leak_at_k and its bounds with step = k, so that MLflow draws the curve."""
    series = {"leak_at_k": curve.leak, "leak_at_k_low": curve.low, "leak_at_k_high": curve.high}
    if curve.excess is not None:
        series["excess_leak_at_k"] = curve.excess
    return [
        (f"{name}.{curve.metric}{suffix}", value, k)
        for name, values in series.items()
        for k, value in zip(curve.k, values, strict=True)
    ]


def _history(model: Path) -> list[tuple[str, float, int]]:
    """The losses of the model's last training, by step."""
    path = model.parent / "history.json"
    if not path.exists():
        return []
    steps = json.loads(path.read_text())
    return [(f"loss.{key}", float(value), step) for step, row in enumerate(steps, 1) for key, value in row.items()]


def _log_metrics(client: Any, run: str, values: list[tuple[str, float, int]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step) for key, value, step in values]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH])


def _log_params(client: Any, run: str, nested: dict[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:5000]) for key, value in _flat(nested, "").items()]
    for start in range(0, len(params), 90):
        client.log_batch(run, params=params[start : start + 90])


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, each in value.items():
        flat |= _flat(each, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _log_model(client: Any, run: str, folder: Path) -> None:
    """Copy a small model as an artifact; a large one is found by its folder's tag."""
    if folder.is_dir() and sum(each.stat().st_size for each in folder.rglob("*")) <= LARGEST_MODEL_COPY:
        client.log_artifacts(run, str(folder), "model")
