"""Runs an experiment in this process, without Ray, under whatever processor this is: for emulated ones, where a cluster
takes minutes to start.

    python -m tests.in_process EXPERIMENT.yaml STORE      prints what tests/golden.py compares
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


class Handle:
    """Stands for a task, an actor or a method of one: whatever is asked of it is done at once."""

    def __init__(self, function):
        self.function = function

    def options(self, **_):
        return self

    def remote(self, *arguments):
        made = self.function(*arguments)
        return Actor(made) if isinstance(self.function, type) else made


class Actor:
    def __init__(self, instance):
        self.instance = instance

    def __getattr__(self, name):
        return Handle(getattr(self.instance, name))


class Rows:
    """The units of a fan-out, computed as they are read."""

    def __init__(self, work, missing, *_):
        self.work, self.missing = work, missing

    def iter_rows(self):
        import numpy as np

        from engine.cluster.fan_out import _compute

        for unit in self.missing:
            yield {name: values[0] for name, values in _compute({"unit": np.array([unit])}, self.work).items()}


def without_ray():
    """Put what the engine asks of Ray in its place."""
    ray = types.ModuleType("ray")
    ray.exceptions = types.SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}))
    ray.remote, ray.get = Handle, lambda made, timeout=None: made
    ray.wait = lambda made, timeout=None: (made, [])
    ray.is_initialized = lambda: False
    sys.modules["ray"] = ray

    from engine.cluster import fan_out, ray_cluster
    from engine.pipeline import run

    ray_cluster.connect, ray_cluster.resources = lambda *_: None, lambda: (1.0, 0.0)
    fan_out._dataset = Rows
    run.THREADS = 1  # torch's random numbers are the process's


if __name__ == "__main__":
    without_ray()

    import torch

    from engine.config.experiment import load_experiment
    from engine.pipeline.run import run
    from engine.store.store import Store
    from tests.golden import found

    torch.set_num_threads(1)
    store = Path(sys.argv[2])
    print(json.dumps(found(run(load_experiment(sys.argv[1]), Store(store)), store)))
