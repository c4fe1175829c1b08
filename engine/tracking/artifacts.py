"""What an MLflow run of a model carries beside numbers: its data sets, a table of samples, the model or where it is.

Results and the store come in; MLflow's client is called. Only engine/tracking/mlflow_run.py uses this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.reporting.leaked_passages import worst_prompts
from engine.reporting.results import ModelResult, Results, generations_stage
from engine.store.replica import at_home, manifest_of, present

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST_MODEL_COPY = 64 * 2**20  # bytes; larger models are recorded by their path
TABLE_PROMPTS = 100
DIGEST = 36  # MLflow's longest digest


def log_files(client: MlflowClient, run: str, results: Results, model: ModelResult, store_root: Path) -> None:
    """Log the data sets, samples.json and the model, where there is one, of one row of the results."""
    folder = at_home(Path(model.stages["model"]), store_root) if "model" in model.stages else None
    _log_datasets(client, run, results, model, folder, store_root)
    _log_samples(client, run, results, model, store_root)
    if folder is not None:
        _log_model(client, run, folder)


def _log_datasets(
    client: MlflowClient, run: str, results: Results, model: ModelResult, folder: Path | None, store_root: Path
) -> None:
    """Forget set, retain set and probes by the digests that fingerprinted their stages."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    curve = model.find_curve(results.leak_group, results.core_metric)
    trained = manifest_of(folder.parent).get("inputs", {}) if folder is not None else {}
    digests = {name: trained.get(name) for name in ("forget", "retain")}
    if curve is not None:
        sampled = manifest_of(store_root / model.stages[generations_stage(curve.decoding)]).get("inputs", {})
        digests["probes"] = sampled.get("probes")
    name, source = results.benchmark["name"], json.dumps(results.benchmark)
    inputs = [
        DatasetInput(
            Dataset(name=f"{name}-{part}", digest=digest[:DIGEST], source_type="leakatk", source=source),
            tags=[InputTag("mlflow.data.context", part)],
        )
        for part, digest in digests.items()
        if digest
    ]
    if inputs:
        client.log_inputs(run, datasets=inputs)


def _log_samples(client: MlflowClient, run: str, results: Results, model: ModelResult, store_root: Path) -> None:
    """samples.json: the prompts that leak most with the highest-scoring samples, as a table of MLflow's UI."""
    worst = worst_prompts(results, model, store_root, TABLE_PROMPTS)
    if not worst:
        return
    columns: dict[str, list[object]] = {
        "prompt": [leaked.prompt for leaked in worst],
        "reference": [leaked.reference for leaked in worst],
        "highest-scoring sample": [leaked.answer.text for leaked in worst],
        "score": [leaked.answer.score for leaked in worst],
        "mean score": [leaked.mean for leaked in worst],
        "retain model's": [leaked.retain.text if leaked.retain else "" for leaked in worst],
    }
    client.log_table(run, data=columns, artifact_file="samples.json")


def _log_model(client: MlflowClient, run: str, model: Path) -> None:
    """Copy a small model as an artifact; of a large one, or of one on a hub, log where it is."""
    size = _bytes_of(model)
    if size is not None and size <= LARGEST_MODEL_COPY:
        client.log_artifacts(run, str(present(model)), "model")
    else:
        client.log_dict(run, {"path": str(model), "bytes": size}, "model/pointer.json")


def _bytes_of(model: Path) -> int | None:
    """Size of a model's folder, of one that only the object store has from its stage's manifest; None of a hub's."""
    if (model / "config.json").is_file():  # nothing but a model is sent
        return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    files = manifest_of(model.parent).get("files", {})
    return sum(facts["bytes"] for name, facts in files.items() if name.startswith(f"{model.name}/")) or None
