"""What makes two runs the same: the identity of an experiment, and the run folder that bears it.

In: an Experiment; out: a hash of what is measured, without what cannot change results, and paths below a store.
"""

from __future__ import annotations

from pathlib import Path

from engine.config.experiment import Experiment
from engine.fingerprint import fingerprint
from engine.reporting.results import Results
from engine.store.store import Store


def experiment_fingerprint(experiment: Experiment, data: dict[str, str] | None = None) -> str:
    """Identity of what is measured: the experiment without its name and without what cannot change results, and the
    versions of the data sets that it reads (Benchmark.data)."""
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
