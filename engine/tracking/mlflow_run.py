"""Recording a finished run in MLflow: one parent run, a child for each model, a grandchild for each round of RULE.

Results and their folder come in; nothing comes out but the tracking URI. Exactly once: a run that was recorded is found
again, one that was half recorded is replaced. Only the driver calls this. The names of all tags, parameters and metrics
stand in docs/recording.md.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any

from engine.fingerprint import fingerprint
from engine.redact import redact
from engine.reporting.results import Curve, ModelResult, Results
from engine.store.files import locked, write_atomic
from engine.store.replica import at_home, manifest_of, mirror_of, readable
from engine.tracking.artifacts import log_files
from engine.tracking.system_metrics import read_system_metrics

EXPERIMENT = "leakatk"
MARK = "mlflow.json"
BATCH = 900  # MLflow takes at most 1000 metrics a call


def tracking_uri(store_root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root / 'mlflow.db'}"


def record(results: Results, folder: Path, store_root: Path) -> bool:
    """Record `results`, whose report and picture stand in `folder`; False where they were recorded there already."""
    uri = tracking_uri(store_root)
    digest = results_digest(results)
    if _recorded(folder, uri) == digest:
        return False
    with locked(folder / ".mlflow.lock"):
        if _recorded(folder, uri) == digest:  # by another process while this one waited
            return False
        client = client_of(uri)
        experiment_id = experiment_of(client, uri, store_root)
        tags = _common_tags(results, folder, store_root)
        found = client.search_runs(
            [experiment_id], f"tags.`leakatk.fingerprint` = '{results.fingerprint}'", max_results=5000
        )
        own = [each for each in found if each.data.tags.get("leakatk.recording") == tags["leakatk.recording"]]
        for run in found:
            if run.data.tags.get("leakatk.results") == digest and run.info.status == "FINISHED":
                _delete(client, [each for each in own if each.data.tags.get("leakatk.kind") == "live"])
                _note(folder, uri, run.info.run_id, digest)
                return False
        _delete(client, own)  # what was seen live, and what an interrupted recording, or one of older results, left
        parent = _record_run(client, experiment_id, results, folder, store_root, tags, digest)
        _note(folder, uri, parent, digest)
        return True


def _delete(client: Any, runs: list[Any]) -> None:
    for run in runs:
        client.delete_run(run.info.run_id)


def record_interrupted(run: dict[str, str], folder: Path, store_root: Path) -> None:
    """A run of status KILLED in the place of one that was asked to end; recording the finished one replaces it."""
    client = client_of(uri := tracking_uri(store_root))
    tags = {"leakatk.recording": recording_of(folder), "leakatk.fingerprint": run["fingerprint"]}
    tags |= {"leakatk.benchmark": run["benchmark"], "leakatk.kind": "interrupted", "mlflow.source.name": "leakatk"}
    started = start_run(client, experiment_of(client, uri, store_root), run["name"], tags)
    client.set_terminated(started, status="KILLED")


def results_digest(results: Results) -> str:
    """Identity of what was found: the results without the wall-clock time that finding them took."""
    return fingerprint(dataclasses.asdict(results) | {"seconds": None})


def client_of(uri: str) -> Any:
    """MLflow's client of a tracking URI, quiet."""
    import logging

    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


def experiment_of(client: Any, uri: str, store_root: Path) -> str:
    """The id of MLflow's experiment named leakatk, made where it is not there."""
    from mlflow.exceptions import MlflowException

    location = (store_root / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
    for _ in range(2):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs, not on traces
            return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))
        except MlflowException:  # another process made it between the two calls
            continue
    raise RuntimeError(f"MLflow makes no experiment {EXPERIMENT!r}")


def start_run(client: Any, experiment_id: str, name: str, tags: dict[str, str], parent: str | None = None) -> str:
    """Start an MLflow run, below `parent` if one is given; returns its id."""
    nested = {"mlflow.parentRunId": parent} if parent else {}
    return str(client.create_run(experiment_id, tags=tags | nested, run_name=name).info.run_id)


def _record_run(
    client: Any,
    experiment_id: str,
    results: Results,
    folder: Path,
    store_root: Path,
    tags: dict[str, str],
    digest: str,
) -> str:
    own = {"leakatk.kind": "experiment", "leakatk.results": digest}
    parent = start_run(client, experiment_id, results.name, tags | own)
    log_params(client, parent, results.experiment)
    log_metrics(client, parent, read_system_metrics(folder))
    for model in results.models:
        _record_model(client, experiment_id, parent, results, model, store_root, tags)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != MARK and not path.name.startswith("."):
            client.log_artifact(parent, str(path))
    client.set_terminated(parent)
    return parent


def _common_tags(results: Results, folder: Path, store_root: Path) -> dict[str, str]:
    """Tags of every MLflow run of this experiment. recording: tells what this run's folder recorded from all else."""
    model, curve = results.headline[0] if results.headline else (None, None)
    versions = {}
    if model is not None and curve is not None:
        versions = manifest_of(store_root / model.stages[f"generations {curve.decoding}"]).get("versions", {})
    commit = versions.get("leakatk_commit", "")
    tags = {
        "leakatk.recording": recording_of(folder),
        "leakatk.fingerprint": results.fingerprint,
        "leakatk.benchmark": results.benchmark["name"],
        "leakatk.split": str(results.benchmark.get("split", "")),
        "leakatk.model": str((results.experiment.get("model") or {}).get("path") or results.benchmark["name"]),
        "leakatk.decoding": curve.decoding if curve is not None else "",
        "leakatk.code_version": "+".join(filter(None, (versions.get("leakatk", ""), commit))),
        "mlflow.source.name": "leakatk",
        "mlflow.source.git.commit": commit.removesuffix(".dirty"),
        "mlflow.user": getpass.getuser(),
    }
    return {key: value for key, value in tags.items() if value}


def _read_mark(folder: Path) -> dict[str, Any]:
    """{"recording": id, "recorded": {uri: {"run": id, "results": digest}}}; empty where it is not there."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and "recording" in mark else {}


def recording_of(folder: Path) -> str:
    """The id by which what this run folder recorded is known."""
    mark = _read_mark(folder)
    if not mark:  # on disk before anything is sent, so that what a kill leaves on the server is known again
        mirror = mirror_of(folder)  # all machines of a store record a run as the same
        shared = fingerprint([mirror.url, folder.name])[:32] if mirror is not None else None
        mark = {"recording": shared or uuid.uuid4().hex, "recorded": {}}
        write_atomic(folder / MARK, json.dumps(mark))
    return str(mark["recording"])


def _recorded(folder: Path, uri: str) -> str | None:
    """Digest of the results that this folder recorded at `uri`."""
    entry = _read_mark(folder).get("recorded", {}).get(redact(uri))
    return entry["results"] if entry else None


def _note(folder: Path, uri: str, run: str, digest: str) -> None:
    mark = _read_mark(folder)
    mark["recorded"][redact(uri)] = {"run": run, "results": digest}
    write_atomic(folder / MARK, json.dumps(mark))


def _record_model(
    client: Any,
    experiment_id: str,
    parent: str,
    results: Results,
    model: ModelResult,
    store_root: Path,
    tags: dict[str, str],
) -> None:
    folders = {
        f"leakatk.folder.{name.replace(' ', '.')}": str(store_root / path) for name, path in model.stages.items()
    }
    own = {"leakatk.kind": model.role, "leakatk.method": str(model.method.get("name", model.role))}
    run = start_run(client, experiment_id, model.name, tags | own | folders, parent)
    log_params(client, run, {"method": model.method, "role": model.role})
    scalars = {"utility": model.utility, "tokens_sampled": model.tokens, "seconds": model.seconds, "steps": model.steps}
    scalars |= {f"greedy.{group}": value for group, value in model.greedy.items()}
    scalars |= {name: value for name, value in model.metrics.items() if value is not None}
    metrics = [(key, float(value), 0) for key, value in scalars.items()]
    for curve in model.curves:
        metrics += _curve_metrics(curve, _suffix(results, model, curve))
    metrics += _history(at_home(Path(model.stages["model"]), store_root))
    for round_ in model.rounds:
        for key in ("leak_at_m", "leaking_samples", "pool", "tokens", "utility"):
            if key in round_:
                metrics.append((f"rule.{key}", float(round_[key]), int(round_["round"])))
        _record_round(client, experiment_id, run, round_, tags)
    log_metrics(client, run, metrics)
    log_files(client, run, results, model, store_root)
    client.set_terminated(run)


def _record_round(
    client: Any, experiment_id: str, method_run: str, round_: dict[str, Any], tags: dict[str, str]
) -> None:
    own = {"leakatk.kind": "round", "leakatk.method": "rule"}
    run = start_run(client, experiment_id, f"round {round_['round']}", tags | own, method_run)
    metrics = [(key, float(value), 0) for key, value in round_.items() if isinstance(value, (int, float))]
    metrics += [("leak_at_k", value, int(k)) for k, value in round_.get("leak", {}).items()]
    log_metrics(client, run, metrics)
    client.set_terminated(run)


def _suffix(results: Results, model: ModelResult, curve: Curve) -> str:
    """What tells this curve from the headline: leak_at_k.<metric> is the headline's own name."""
    headline = model.curve(results.leak_group, results.core_metric)
    suffix = "" if curve.group == results.leak_group else f".{curve.group}"
    return suffix if headline is None or curve.decoding == headline.decoding else f"{suffix}.{curve.decoding}"


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
    """The losses of the model's last training by step, and what was seen when it was looked at."""
    if "history.json" not in manifest_of(model.parent).get("files", {}):
        return []
    history = readable(model.parent / "history.json")
    steps = json.loads(history.read_text() if isinstance(history, Path) else history.read())
    return [(key, value, step) for step, row in enumerate(steps, 1) for key, value in row_metrics(row).items()]


def row_metrics(row: dict[str, float]) -> dict[str, float]:
    """One step of a training's history under its names in MLflow."""
    return {key if key.startswith("watch.") else f"loss.{key}": float(value) for key, value in row.items()}


def log_metrics(client: Any, run: str, values: list[tuple[str, float, int]]) -> None:
    """Log (key, value, step) triples; MLflow draws a metric against its step."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step) for key, value, step in values if math.isfinite(value)]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH])


def log_params(client: Any, run: str, nested: dict[str, Any]) -> None:
    """Log nested settings as parameters named by their path, such as train.lr."""
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
