"""The Python API: experiments on LLM unlearning under probabilistic decoding, from a script or a notebook.

docs/python.md shows it. Names are imported from the engine when they are first used, so that `import leakatk` costs
nothing; a user's mistake is a `UserError` of one line, as on the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks import BENCHMARKS
    from engine.config.experiment import Experiment, load_experiment
    from engine.decode import sample
    from engine.errors import UserError
    from engine.leak import leak_at_k, leak_curve
    from engine.metrics import score
    from engine.store.store import Store
    from leakatk.experiments import evaluate, read_results, run, search
    from methods import METHODS

_HOMES = {
    "BENCHMARKS": "benchmarks",
    "METHODS": "methods",
    "Experiment": "engine.config.experiment",
    "Store": "engine.store.store",
    "UserError": "engine.errors",
    "evaluate": "leakatk.experiments",
    "leak_at_k": "engine.leak",
    "leak_curve": "engine.leak",
    "load_experiment": "engine.config.experiment",
    "read_results": "leakatk.experiments",
    "run": "leakatk.experiments",
    "sample": "engine.decode",
    "score": "engine.metrics",
    "search": "leakatk.experiments",
}

__all__ = [
    "BENCHMARKS",
    "METHODS",
    "Experiment",
    "Store",
    "UserError",
    "evaluate",
    "leak_at_k",
    "leak_curve",
    "load_experiment",
    "read_results",
    "run",
    "sample",
    "score",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leakatk' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return __all__
