"""Processor, memory and GPU use of the driver's machine while an experiment runs, under MLflow's own names.

A thread samples by MLflow's monitors into memory; the run folder gets the rows when the experiment ends, so that they
can be recorded whenever a server is there. Knows nothing of the experiment.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cluster import ray_cluster
from engine.tracking.recorder import Measurement

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

FILE = "system_metrics.jsonl"
EVERY_SECONDS = 5.0


class SystemMetrics:
    """`with SystemMetrics() as system:` samples while the block runs; `system.write(folder)` keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.stopped = threading.Event()

    def __enter__(self) -> SystemMetrics:
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()

    def write(self, folder: Path) -> None:
        """Write what was sampled; a run that found everything finished keeps the rows of the run that worked."""
        from engine.store.files import write_atomic

        if self.rows:
            write_atomic(folder / FILE, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _sample(self) -> None:
        started = time.monotonic()
        while not ray_cluster.connected():  # a run that finds everything finished has nothing to measure
            if self.stopped.wait(EVERY_SECONDS):
                return
        monitors = _monitors()
        while not self.stopped.wait(EVERY_SECONDS):
            row = {"seconds": round(time.monotonic() - started, 1)}
            for monitor in monitors:
                monitor.collect_metrics()
                row |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self.rows.append(row)


def _monitors() -> list[BaseMetricsMonitor]:
    """MLflow's monitors of this machine; that of the GPUs only where the libraries for them are there."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [CPUMonitor(), GPUMonitor()]
    except Exception:  # no NVIDIA library, no driver, no GPU: each has an exception of its own
        return [CPUMonitor()]


def read_system_metrics(folder: Path) -> list[Measurement]:
    """The rows of a run folder by MLflow's names of system metrics; step: seconds since the start."""
    path = folder / FILE
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Measurement(f"system/{key}", float(value), round(row["seconds"]))
        for row in rows
        for key, value in row.items()
        if key != "seconds"
    ]
