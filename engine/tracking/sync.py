"""Recording that never stops or slows an experiment: results are on disk first, MLflow follows when it can.

A run's folder comes in, a Recorded comes out. A server is given a little time in a process of its own, which may be
ended at any moment: `leakatk sync` records later what is missing, exactly once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import UserError
from engine.redact import redact
from engine.reporting.results import Results, read_results
from engine.reporting.run_folder import collect_runs
from engine.tracking.mlflow_run import record
from engine.tracking.recorder import tracking_uri

PATIENCE_SECONDS = 30.0  # for a server at the end of an experiment, model copies included
CONNECT_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The state of one run folder in MLflow: "recorded", "already there" or "waiting", and why it waits."""

    run: str
    state: str
    reason: str = ""


def record_soon(results: Results, folder: Path, store_root: Path, patience: float = PATIENCE_SECONDS) -> Recorded:
    """Record a run that has just ended; a server that is down, slow or broken leaves it waiting for `leakatk sync`."""
    uri = tracking_uri(store_root)
    if not is_server(uri) or not reachable(uri):
        return _tried(results, folder, store_root)
    command = [sys.executable, "-m", "engine", "sync", str(folder), "--store", str(store_root), "--json"]
    environment = own_environment()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, env=environment, check=False)
        return Recorded(**json.loads(done.stdout)["runs"][0])
    except subprocess.TimeoutExpired:
        return Recorded(str(folder), "waiting", f"{redact(uri)} took longer than {patience:.0f} s")
    except (ValueError, LookupError, TypeError):
        return Recorded(str(folder), "waiting", (done.stderr.strip().splitlines() or ["no answer"])[-1])


def sync(runs: list[Path], store_root: Path) -> list[Recorded]:
    """Record every run of `runs` that is not at the tracking URI yet. Waits for nothing: a server that does not answer
    leaves all of them waiting."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # MLflow's own patience is 120 s,
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seven times over
    return [_tried(read_results(run), run if run.is_dir() else run.parent, store_root) for run in runs]


def runs_of(store_root: Path) -> list[Path]:
    """The folders of a store's finished runs, oldest first. UserError where there is none."""
    collect_runs(store_root)
    results = sorted((store_root / "runs").glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    if not results:
        raise UserError(f"{store_root}: no finished run there; run an experiment first, or name the store by --store")
    return [path.parent for path in results]


def own_environment() -> dict[str, str]:
    """The environment of a Python process that imports the same engine as this one, wherever it starts."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def reachable(uri: str) -> bool:
    """Whether something listens at the URI's host and port."""
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _tried(results: Results, folder: Path, store_root: Path) -> Recorded:
    uri = tracking_uri(store_root)
    if is_server(uri) and not reachable(uri):
        return Recorded(str(folder), "waiting", f"{redact(uri)} does not answer")
    try:
        new = record(results, folder, store_root)
    except Exception as error:  # whatever MLflow or the network raises, the results are on disk
        lines = str(error).strip().splitlines() or [""]
        return Recorded(str(folder), "waiting", f"{type(error).__name__}: {redact(lines[0])[:200]}")
    return Recorded(str(folder), "recorded" if new else "already there")


def is_server(uri: str) -> bool:
    """Whether the tracking URI is a server's, not a file's."""
    return urlsplit(uri).scheme in ("http", "https")
