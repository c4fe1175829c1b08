"""A search in MLflow: a parent run, a child for each trial, the pictures and the winner's experiment.

A Search and its JSON come in. A server that does not answer, or not in time, costs the record, not the search; the same
command, run again, records it again in its place.
"""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

from engine.errors import one_line
from engine.redact import redact
from engine.search.result import Search, Trial
from engine.tracking.recorder import Measurement, Recorder, tracking_uri
from engine.tracking.sync import PATIENCE_SECONDS, is_server, reachable

NUMBERS = ("leak", "low", "high", "excess", "greedy", "utility", "n", "k", "tokens")


def record_search(search: Search, correlation: float, pictures: list[Path], root: Path) -> None:
    """Record it; one line on stderr where that was not possible. correlation: of greedy and leak@k, NaN unknown."""
    uri = tracking_uri(root)
    if is_server(uri) and not reachable(uri):
        _warn(f"{uri} does not answer")
        return
    recording = threading.Thread(target=_record, args=(search, correlation, pictures, root), daemon=True)
    recording.start()
    recording.join(PATIENCE_SECONDS if is_server(uri) else None)
    if recording.is_alive():
        _warn(f"{uri} took longer than {PATIENCE_SECONDS:.0f} s")


def _record(search: Search, correlation: float, pictures: list[Path], root: Path) -> None:
    try:
        recorder = Recorder(root)
        name, method = search.folder.name, search.setting.space.method
        recorder.delete(recorder.runs({"leakatk.search": name}))
        tags = {"leakatk.kind": "search", "leakatk.search": name, "leakatk.method": method}
        parent = recorder.start(name, tags)
        recorder.log_params(parent, {"space": search.setting.space.model_dump(mode="json")})
        recorder.log_metrics(parent, _numbers(search, correlation))
        for trial in search.trials:
            _record_trial(recorder, trial, tags | {"leakatk.kind": "trial"}, parent)
        for path in [*pictures, search.folder / "best.yaml", search.folder / "search.json"]:
            if path.exists():
                recorder.client.log_artifact(parent, str(path))
        recorder.client.set_terminated(parent)
    except Exception as error:  # whatever the server or the network raises
        _warn(one_line(str(error) or type(error).__name__)[:200])


def _record_trial(recorder: Recorder, trial: Trial, tags: dict[str, str], parent: str) -> None:
    run = recorder.start(trial.id, tags, parent)
    recorder.log_params(run, dict(trial.values))
    recorder.log_metrics(run, [Measurement(name, float(getattr(trial.report, name))) for name in NUMBERS])
    recorder.client.set_tag(run, "leakatk.state", trial.state)
    if trial.report.failed:
        recorder.client.set_tag(run, "leakatk.failed", redact(trial.report.failed))
    recorder.client.set_terminated(run, status="FAILED" if trial.report.failed else "FINISHED")


def _numbers(search: Search, correlation: float) -> list[Measurement]:
    """The parent's metrics; what is not finite is left out when they are logged."""
    best = search.best.report if search.best is not None else None
    numbers = {
        "tokens_sampled": float(search.tokens),
        "seconds": search.seconds,
        "greedy_rank_correlation": correlation,
        "best.leak": best.leak if best is not None else math.nan,
        "best.utility": best.utility if best is not None else math.nan,
    }
    return [Measurement(name, value) for name, value in numbers.items()]


def _warn(reason: str) -> None:
    print(f"leakatk: the search is not in MLflow: {redact(reason)}; run the same command again", file=sys.stderr)
