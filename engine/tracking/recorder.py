"""MLflow's client on the store's tracking URI: starting, finding and filling runs of the experiment named leakatk.

Names and numbers come in, run ids come out. Knows nothing of results or searches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "leakatk"
BATCH = 900  # MLflow takes at most 1000 metrics a call
PARAMETER_BATCH = 90  # and at most 100 parameters
MOST_RUNS = 5000  # that one search returns


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One value of an MLflow metric; MLflow draws a metric against its steps."""

    key: str
    value: float
    step: int = 0


def tracking_uri(store_root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file in the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_quoted(store_root / 'mlflow.db')}"


def _quoted(path: Path) -> str:
    """A path as part of a URL: what would begin its query or be read as an escape is escaped, all else is as it was in
    the addresses of older records."""
    return str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def user_name() -> str:
    """Who runs this: their name, or their number where a container gives it none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class Recorder:
    """MLflow's client with the experiment that all runs of a store go to, made where it is not there."""

    def __init__(self, store_root: Path) -> None:
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = tracking_uri(store_root)
        self.client = MlflowClient(self.uri)
        self.experiment = _experiment(self.client, self.uri, store_root)
        if self.uri == f"sqlite:///{_quoted(store_root / 'mlflow.db')}":
            _remove_stray(store_root)

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Start a run, below `parent` if one is given; returns its id."""
        nested = {"mlflow.parentRunId": parent} if parent else {}
        return str(self.client.create_run(self.experiment, tags={**tags, **nested}, run_name=name).info.run_id)

    def runs(self, tags: Mapping[str, str]) -> list[Run]:
        """The runs that have all of these tags."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return list(self.client.search_runs([self.experiment], wanted, max_results=MOST_RUNS))

    def delete(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)

    def log_metrics(self, run: str, values: Iterable[Measurement]) -> None:
        """Log measurements; what is not finite is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(one.key, one.value, now, one.step) for one in values if math.isfinite(one.value)]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH])

    def log_params(self, run: str, nested: Mapping[str, object]) -> None:
        """Log nested settings as parameters named by their path, such as train.lr."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:5000]) for key, value in _flat(nested, "").items()]
        for start in range(0, len(params), PARAMETER_BATCH):
            self.client.log_batch(run, params=params[start : start + PARAMETER_BATCH])


def _experiment(client: MlflowClient, uri: str, store_root: Path) -> str:
    """The id of MLflow's experiment."""
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


def _remove_stray(store_root: Path) -> None:
    """Remove the empty folders that MLflow makes of an address without reading its escapes."""
    stray = Path(_quoted(store_root))
    for folder in (stray, *stray.parents):
        if folder in (store_root, *store_root.parents):
            break
        with contextlib.suppress(OSError):
            folder.rmdir()


def _flat(value: object, prefix: str) -> dict[str, object]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, nested in value.items():
        flat |= _flat(nested, f"{prefix}.{key}" if prefix else str(key))
    return flat
