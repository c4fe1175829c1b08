"""A search in MLflow: a parent run, a child for each trial, the pictures and the winner's experiment.

A Search and its JSON come in. A server that does not answer, or not in time, costs the record, not the search; the same
command, run again, records it anew in place of what there was.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from engine.redact import redact
from engine.search.tuner import Search
from engine.tracking.sync import PATIENCE_SECONDS, reachable

NUMBERS = ("leak", "low", "high", "excess", "greedy", "utility", "n", "k", "tokens")


def record_search(found: Search, document: dict[str, Any], pictures: list[Path], root: Path) -> None:
    """Record it; one line on stderr where that was not possible."""
    from engine.tracking.mlflow_run import tracking_uri

    uri = tracking_uri(root)
    server = uri.startswith("http")
    if server and not reachable(uri):
        _lost(f"{redact(uri)} does not answer")
        return
    recording = threading.Thread(target=_record, args=(found, document, pictures, root, uri), daemon=True)
    recording.start()
    recording.join(PATIENCE_SECONDS if server else None)
    if recording.is_alive():
        _lost(f"{redact(uri)} took longer than {PATIENCE_SECONDS:.0f} s")


def _record(found: Search, document: dict[str, Any], pictures: list[Path], root: Path, uri: str) -> None:
    from engine.tracking.mlflow_run import client_of, experiment_of, log_metrics, log_params, start_run

    try:
        client = client_of(uri)
        where = experiment_of(client, uri, root)
        tags = {"leakatk.kind": "search", "leakatk.search": found.folder.name, "leakatk.method": document["method"]}
        for old in client.search_runs([where], f"tags.`leakatk.search` = '{found.folder.name}'", max_results=5000):
            client.delete_run(old.info.run_id)
        parent = start_run(client, where, found.folder.name, tags)
        log_params(client, parent, {"space": found.setting.space.model_dump(mode="json")})
        log_metrics(client, parent, _numbers(found, document))
        for each in found.trials:
            child = start_run(client, where, each.id, tags | {"leakatk.kind": "trial"}, parent)
            log_params(client, child, each.values)
            log_metrics(client, child, [(name, float(each.seen[name]), 0) for name in NUMBERS])
            client.set_tag(child, "leakatk.state", each.state)
            if each.seen["failed"]:
                client.set_tag(child, "leakatk.failed", redact(each.seen["failed"]))
            client.set_terminated(child, status="FAILED" if each.seen["failed"] else "FINISHED")
        for path in [*pictures, found.folder / "best.yaml", found.folder / "search.json"]:
            if path.exists():
                client.log_artifact(parent, str(path))
        client.set_terminated(parent)
    except Exception as error:  # whatever the server or the network raises
        _lost((str(error).splitlines() or [type(error).__name__])[0][:200])


def _numbers(found: Search, document: dict[str, Any]) -> list[tuple[str, float, int]]:
    """The parent's metrics; what is not finite is left out when they are logged."""
    correlation = document["greedy_rank_correlation"]
    numbers = {"tokens_sampled": float(found.tokens), "seconds": found.seconds}
    numbers["greedy_rank_correlation"] = np.nan if correlation is None else float(correlation)
    if found.best is not None:
        numbers |= {f"best.{name}": float(found.best.seen[name]) for name in ("leak", "utility")}
    return [(name, value, 0) for name, value in numbers.items()]


def _lost(reason: str) -> None:
    print(f"leakatk: the search is not in MLflow: {redact(reason)}; run the same command again", file=sys.stderr)
