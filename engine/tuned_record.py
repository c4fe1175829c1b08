"""A search in MLflow: a parent run, a child for each trial, the pictures and the winner's experiment.

A Search and its JSON come in. A server that does not answer costs the record, not the search.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.tune import Search


def record_search(found: Search, document: dict[str, Any], pictures: list[Path], root: Path) -> None:
    """A parent run in MLflow with one child a trial. A server that does not answer costs the record, not the search."""
    from engine.record import client_of, experiment_of, log_metrics, log_params, start_run, tracking_uri
    from engine.redact import redact

    try:
        uri = tracking_uri(root)
        client = client_of(uri)
        where = experiment_of(client, uri, root)
        tags = {"leakatk.kind": "search", "leakatk.search": found.folder.name, "leakatk.method": document["method"]}
        for old in client.search_runs([where], f"tags.`leakatk.search` = '{found.folder.name}'", max_results=5000):
            client.delete_run(old.info.run_id)
        parent = start_run(client, where, found.folder.name, tags)
        log_params(client, parent, {"space": found.setting.space.model_dump(mode="json")})
        log_metrics(client, parent, [("tokens_sampled", float(found.tokens), 0), ("seconds", found.seconds, 0)])
        for each in found.trials:
            child = start_run(client, where, each.id, tags | {"leakatk.kind": "trial"}, parent)
            log_params(client, child, each.values)
            names = ("leak", "low", "high", "excess", "greedy", "utility", "n", "k", "tokens")
            numbers = [(name, float(each.seen[name]), 0) for name in names if np.isfinite(float(each.seen[name]))]
            log_metrics(client, child, numbers)
            client.set_tag(child, "leakatk.state", each.state)
            client.set_terminated(child, status="FAILED" if each.seen["failed"] else "FINISHED")
        for path in [*pictures, found.folder / "best.yaml", found.folder / "search.json"]:
            if path.exists():
                client.log_artifact(parent, str(path))
        client.set_terminated(parent)
    except Exception as error:  # whatever the server or the network raises
        print(f"leakatk: the search is not in MLflow: {redact(str(error)).splitlines()[0][:200]}", file=sys.stderr)
