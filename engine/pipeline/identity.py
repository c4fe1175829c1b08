"""What makes two runs the same: the identity of an experiment, and the run folder that bears it.

In: an Experiment; out: a hash of what is measured, without what cannot change results, and paths below a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.experiment import Experiment
from engine.evaluation.benchmark_metrics import greedy_metrics
from engine.fingerprint import fingerprint
from engine.metrics import known_by
from engine.models.source import model_source
from engine.reporting.results import Results
from engine.store.store import Store
from methods import versions_of

if TYPE_CHECKING:
    from benchmarks.base import Benchmark


def contents(experiment: Experiment, benchmark: Benchmark) -> dict[str, str]:
    """What the experiment names and its file does not hold, by content: data sets, models, metrics' models and servers,
    and versions of methods from 2 on. UserError for a model that is not there."""
    found, model = dict(benchmark.data), experiment.model
    if model.endpoint is None:
        for key, path, revision in (
            ("model.path", model.path, model.revision),
            ("model.retain", model.retain, model.retain_revision),
        ):
            if path is not None:
                found[key] = model_source(path, revision, model.trust_remote_code, key).identity
    for name in dict.fromkeys((*(experiment.metrics or ()), *greedy_metrics(benchmark))):
        known = known_by(name, experiment.metric_options.get(name, {}))
        found |= {f"{key} of {name}": by for key, by in known.items()}
    for section in experiment.methods:
        found |= {f"version of {name}": str(version) for name, version in versions_of(section.method).items()}
    return found


def experiment_fingerprint(experiment: Experiment, data: dict[str, str] | None = None) -> str:
    """Identity of what is measured: the experiment without its name and without what cannot change results, and the
    `contents` of what it names."""
    settings = experiment.model_dump(mode="json", exclude={"name"}) | ({"data": data} if data else {})
    settings["sampling"] = {k: v for k, v in settings["sampling"].items() if k not in ("workers", "max_rows", "cpus")}
    if settings["sampling"]["precision"] in (None, "bf16" if settings["sampling"]["gpus"] else "fp32"):
        del settings["sampling"]["precision"]  # the device's own
    if settings["sampling"]["engine"] == "exact":  # a key younger than many a store, as the next
        del settings["sampling"]["engine"]
    if settings["sampling"]["tensor_parallel"] == 1:
        del settings["sampling"]["tensor_parallel"]
    for section in (settings["train"], settings["model"]["finetune"], *(each["train"] for each in settings["methods"])):
        for key in ("gpus", "cpus"):
            (section or {}).pop(key, None)
    settings["sampling"]["reweight"] = False  # a key that is gone: runs without it keep their identity
    if settings["train"]["offload"] is None:  # a key younger than many a store
        del settings["train"]["offload"]
    if not settings["model"]["template_options"]:  # likewise
        del settings["model"]["template_options"]
    if not settings["attacks"]:  # likewise
        del settings["attacks"]
    if settings["numerics"] != "portable":  # likewise
        del settings["numerics"]
    if experiment.model.endpoint is not None:
        settings["model"]["endpoint"] = experiment.model.endpoint.url
    return fingerprint(settings)


def run_folder(store: Store, results: Results) -> Path:
    """Where a run's results, picture and report stand: runs/<name>-<fingerprint> below the store."""
    folder = folder_of(store, results.name, results.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(store: Store, name: str, identity: str) -> Path:
    """The path of an experiment's run folder, by its name and fingerprint."""
    return store.root / "runs" / f"{name}-{identity[:8]}"
