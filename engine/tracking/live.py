"""Metrics of models while they are trained, in MLflow at once: for whoever watches a long training.

Rows come in from the progress board, MLflow runs tagged `live` come out, written by a process of its own: a server that
is slow or down delays nothing. The recording at the end, which has every row, takes their place
(engine/tracking/mlflow_run.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

from engine.tracking.mlflow_run import recording_of, step_metrics
from engine.tracking.recorder import Recorder, tracking_uri
from engine.tracking.sync import is_server, own_environment, reachable

SERVER_SECONDS = 3.0  # given at the end to what is on its way
FILE_SECONDS = 60.0  # a database file that is being made must not be left half made


class Live:
    """`with Live(...) as live: live(label, step, row)`; the writing process starts with the first row.

    name, fingerprint: of the experiment; folder: its run folder.
    """

    def __init__(self, name: str, fingerprint: str, folder: Path, store_root: Path) -> None:
        self.header = {"name": name, "fingerprint": fingerprint, "folder": str(folder), "store": str(store_root)}
        self.uri = tracking_uri(store_root)
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> Live:
        return self

    def __call__(self, label: str, step: int, row: dict[str, float]) -> None:
        with self.lock:
            if self.process is None:
                self.process = self._start()
            self._send([label.removeprefix("train "), step, row])

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(SERVER_SECONDS if is_server(self.uri) else FILE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.tracking.live"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env=own_environment(),
        )
        self._send(self.header)
        return self.process

    def _send(self, message: object) -> None:
        assert self.process is not None
        with contextlib.suppress(OSError):  # the writer has given up: the end's recording has it all
            print(json.dumps(message), file=self.process.stdin, flush=True)


def main() -> None:
    """The writing process: the header and then rows, a line each, until standard input ends."""
    header = json.loads(sys.stdin.readline())
    store, folder = Path(header["store"]), Path(header["folder"])
    uri = tracking_uri(store)
    if is_server(uri) and not reachable(uri):
        return
    recorder = Recorder(store)
    folder.mkdir(parents=True, exist_ok=True)
    tags = {
        "leakatk.kind": "live",
        "leakatk.fingerprint": header["fingerprint"],
        "leakatk.recording": recording_of(folder),
    }
    recorder.delete(recorder.runs(tags))  # of an earlier try that was killed
    parent = recorder.start(f"{header['name']} (live)", tags)
    runs: dict[str, str] = {}
    written = set()
    for line in sys.stdin:
        label, step, row = json.loads(line)
        if (label, step) in written:  # a training that goes on from a checkpoint reports some steps twice
            continue
        written.add((label, step))
        if label not in runs:
            runs[label] = recorder.start(label, tags, parent)
        recorder.log_metrics(runs[label], step_metrics(row, step))
    for run in (*runs.values(), parent):
        recorder.client.set_terminated(run)


if __name__ == "__main__":
    main()
