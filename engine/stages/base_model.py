"""A benchmark's own untrained model as a stage.

A benchmark, its options and a seed come in; `model/` comes out, in Hugging Face's layout. Knows nothing of training.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.numerics import worker_environment
from engine.cluster.reporter import Report
from engine.jsonl import JsonObject
from engine.stages.base import Stage, portable_inputs
from engine.store.work_dir import at_work, open_workplace

BASE_MODEL_VERSION = 3  # part of every such stage's fingerprint: raise it when other models are written


@dataclasses.dataclass(frozen=True)
class BaseModelJob(Stage):
    """The model that `benchmark`, loaded with `options`, brings for fine-tuning. portable: in arithmetic that CPUs
    share (engine/cluster/numerics.py)."""

    benchmark: Benchmark
    options: dict[str, object]
    seed: int
    portable: bool = False
    kind: ClassVar[str] = "base"
    title: ClassVar[str] = "write"
    lazily: ClassVar[bool] = True

    @property
    def units(self) -> int:
        return 1

    def inputs(self) -> JsonObject:
        options = self.benchmark.base_inputs(self.options)
        return {
            "benchmark": self.benchmark.name,
            "options": options,
            "seed": self.seed,
            "version": BASE_MODEL_VERSION,
            **portable_inputs(self.portable),
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        import ray

        task = ray.remote(at_work).options(
            num_cpus=1, scheduling_strategy=ray_cluster.ANYWHERE, runtime_env=worker_environment(self.portable)
        )
        place = open_workplace(work)
        ray.get(task.remote(place, report.begin, self.benchmark.base_model, work / "model", self.seed))
        place.receive()
        return {}


def brings_model(benchmark: Benchmark) -> bool:
    """Whether the benchmark has a model of its own."""
    return type(benchmark).base_model is not Benchmark.base_model
