"""Ending a run that is asked to end: SIGTERM (`ray job stop`, a machine's shutdown) or ctrl-C.

Trainings under way save a checkpoint and stop, the run is marked as interrupted, in its folder and in MLflow, and the
process ends with 128 + the signal's number; the same command goes on from there. A second signal ends it at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from engine.jsonl import JsonObject

if TYPE_CHECKING:
    from engine.cluster.progress import Progress
    from engine.config.experiment import Experiment

PATIENCE_SECONDS = 70.0  # for trainings to reach the end of a step and save
RECORD_SECONDS = 20.0  # for MLflow
MARK = "interrupted.json"


class Ending:
    """`with Ending(root) as ending:` around a run; `ending.about(...)` says what there will be to end.

    Signals are taken in the main thread alone, and only while the block runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.progress: Progress | None = None
        self.run: JsonObject | None = None
        self.folder: Path | None = None
        self.thread: threading.Thread | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Ending:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread is not None:
            self.thread.join()  # which ends the process
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def about(
        self, experiment: Experiment, fingerprint: str, folder: Path, progress: Progress, search: bool = False
    ) -> None:
        """What runs in `folder`: `experiment`, or a search over it, shown by `progress`; an older mark of it goes."""
        self.progress, self.folder = progress, folder
        self.run = {"name": experiment.name, "fingerprint": fingerprint, "benchmark": experiment.benchmark.name}
        if search:
            self.run["search"] = folder.name
        (folder / MARK).unlink(missing_ok=True)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.thread is not None:
            os._exit(128 + number)
        self.thread = threading.Thread(target=self._end, args=(number,), daemon=True)
        self.thread.start()

    def _end(self, number: int) -> None:
        try:
            self._mark(number)
            first = "; trainings save a checkpoint first" if self.progress is not None else ""
            print(f"leakatk: asked to end{first}", file=sys.stderr, flush=True)
            if self.progress is not None:
                self.progress.stop_trainings(PATIENCE_SECONDS)
            self._record()
            print(
                "leakatk: interrupted; finished work is kept, the same command goes on from it",
                file=sys.stderr,
                flush=True,
            )
        finally:
            _shut_down()
            os._exit(128 + number)

    def _mark(self, number: int) -> None:
        from engine.store.files import write_atomic

        if self.run is None or self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        said = {"state": "interrupted", "signal": signal.Signals(number).name, "at": at, **self.run}
        write_atomic(self.folder / MARK, json.dumps(said | {"command": sys.argv}, indent=1))

    def _record(self) -> None:
        if self.run is None or self.folder is None:
            return
        recording = threading.Thread(target=_record, args=(self.run, self.folder, self.root), daemon=True)
        recording.start()
        recording.join(RECORD_SECONDS)


def _record(run: JsonObject, folder: Path, root: Path) -> None:
    """An MLflow run of status KILLED, which the finished run will replace; the mark on disk is enough without it."""
    from engine.tracking.mlflow_run import record_interrupted
    from engine.tracking.recorder import tracking_uri
    from engine.tracking.sync import reachable

    with contextlib.suppress(Exception):
        uri = tracking_uri(root)
        if not uri.startswith("http") or reachable(uri):
            record_interrupted(run, folder, root)


def _shut_down() -> None:
    """Leave the cluster, so that tasks of this run end; a cluster of one's own ends with it."""
    ray = sys.modules.get("ray")
    if ray is not None:
        closing = threading.Thread(target=ray.shutdown, daemon=True)
        closing.start()
        closing.join(15.0)
    sys.stdout.flush()
    sys.stderr.flush()
