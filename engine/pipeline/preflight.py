"""Before anything runs on a machine or cluster: versions, store, Ray, GPUs and MLflow are looked over, and the plan.

A store and maybe an experiment come in; Checks come out, each with what follows from it. Starts no cluster; joins the
one at RAY_ADDRESS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.hardware import Node, fast_bf16, nodes
from engine.config.experiment import Experiment
from engine.config.sections import ModelSection, TrainSection
from engine.errors import UserError
from engine.models.size import ModelSize, model_size, size_of
from engine.models.source import ModelSource, model_source
from engine.pipeline.memory_model import PROCESS, training_memory
from engine.pipeline.memory_plan import plan
from engine.pipeline.model_checks import check_metrics, check_model
from engine.pipeline.plan_items import CONTEXT, gib
from engine.pipeline.run_plan import kept
from engine.pipeline.sampling_engine import with_engine
from engine.redact import redact
from engine.store.store import Store

LIKE_LLAMA = {  # one layer for each 1/16 of a billion parameters, as Llama-3.2-1B has
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


@dataclasses.dataclass(frozen=True)
class Check:
    """What was looked at, whether it will work ("yes", "no", or "note" for what one should know), and what follows."""

    what: str
    state: str
    said: str


def examine(
    store: Store,
    experiment: Experiment | None = None,
    imagined: Node | None = None,
    attacks: Callable[[Experiment, Benchmark], Sequence[TrainSection]] | None = None,
) -> list[Check]:
    """All checks, in the order in which one would look; with an imagined machine, only what an experiment needs of
    it. attacks: gives the settings of the experiment's attacks that train."""
    if imagined is not None:
        checks = [_node(imagined), _largest([imagined])]
        return checks + (_plan(experiment, store, [imagined], attacks, imagined=True) if experiment is not None else [])
    checks = [_libraries(), _ray()]
    if checks[-1].state == "no":  # nothing can be asked of a cluster that does not answer
        return [*checks, _store(store), _mlflow(store)]
    machines = nodes(store.root)
    checks += [_node(each) for each in machines]
    blind = [each.name for each in machines if each.disk is None]
    if blind:
        checks.append(Check("store", "no", f"{store.root} is not seen by {', '.join(blind)}; mount it on every node"))
    checks += [_store(store), _mlflow(store), _gpus(machines), _largest(machines)]
    if experiment is not None:
        checks += _plan(experiment, store, machines, attacks)
    return checks


def _libraries() -> Check:
    """Whether what is installed lies in the ranges that this package asks for."""
    python = f"Python {sys.version.split()[0]}"
    try:
        needed = [Requirement(text) for text in metadata.requires("leakatk") or []]
    except metadata.PackageNotFoundError:
        return Check("libraries", "note", f"{python}; leakatk is not installed here: versions are not checked")
    wrong = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} instead of {requirement.specifier}")
    if wrong:
        missing = any(" missing " in each for each in wrong)
        return Check("libraries", "no" if missing else "note", f"{python}; {', '.join(wrong)}: run `make setup`")
    return Check("libraries", "yes", f"{python}, leakatk {metadata.version('leakatk')}, every version as it asks for")


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("cluster", "yes", "none asked for (RAY_ADDRESS): this machine is a cluster of one")
    try:
        ray_cluster.connect()
    except UserError as error:
        return Check("cluster", "no", str(error))
    cpus, gpus = ray_cluster.resources()
    token = os.environ.get("RAY_AUTH_MODE") == "token"
    said = f"{redact(address)} answers; {cpus:g} CPUs and {gpus:g} GPUs, those its autoscaler may start included"
    return Check("cluster", "yes" if token else "note", said + ("" if token else "; RAY_AUTH_MODE=token is not set"))


def _node(node: Node) -> Check:
    kinds = Counter(f"{each.name} {gib(each.memory)}" for each in node.gpus)
    gpus = ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items()) or "no GPU"
    disk = f", {gib(node.disk)} of disk free below the store" if node.disk is not None else ""
    memory = f"{gib(node.memory)} of memory ({gib(node.free)} free)"
    return Check(f"node {node.name}", "yes", f"{node.cores:g} cores, {memory}, {gpus}{disk}")


def _store(store: Store) -> Check:
    """Locks and renames, on which the store's promises rest, tried in it."""
    probe = store.root / f".doctor-{os.getpid()}"
    try:
        with probe.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fsync(stream.fileno())
        probe.rename(probe.with_suffix(".renamed"))
    except OSError as error:
        return Check("store", "no", f"{store.root}: no locks, sync or rename there ({error.strerror}); choose another")
    finally:
        for each in (probe, probe.with_suffix(".renamed")):
            each.unlink(missing_ok=True)
    return Check("store", "yes", f"{store.root} can be written, locked and renamed in")


def _mlflow(store: Store) -> Check:
    from engine.tracking.recorder import tracking_uri
    from engine.tracking.sync import reachable

    uri = tracking_uri(store.root)
    if not uri.startswith("http"):
        return Check("MLflow", "yes", f"{redact(uri)}; `leakatk ui` shows it on 127.0.0.1")
    if reachable(uri):
        return Check("MLflow", "yes", f"{redact(uri)} answers")
    return Check("MLflow", "note", f"{redact(uri)} does not answer: runs will wait for `leakatk sync`")


def _gpus(machines: list[Node]) -> Check:
    count = sum(len(node.gpus) for node in machines)
    if count:
        return Check("GPUs", "yes", f"{count}: training by NCCL, sampling in bfloat16, one worker a GPU")
    if cluster_may_grow():
        return Check(
            "GPUs", "note", "none now, but the autoscaler may start some: how much memory they have shows then"
        )
    return Check("GPUs", "note", "none: training (gloo) and sampling run on CPUs in float32, for models of millions")


def cluster_may_grow() -> bool:
    """Whether GPUs are to come that no node has yet."""
    return bool(os.environ.get("RAY_ADDRESS")) and ray_cluster.resources()[1] >= 1


def _largest(machines: list[Node]) -> Check:
    """Models of Llama's proportions that one worker trains, batches of one sequence of 512 tokens."""
    devices = [gpu.memory - CONTEXT for node in machines for gpu in node.gpus]
    room = max(devices, default=max(node.memory for node in machines) - PROCESS)
    every = TrainSection(batch_size=1)
    said = []
    for name, settings in (
        ("all weights in float32", every),
        ("LoRA of rank 16", TrainSection(batch_size=1, lora={"rank": 16})),  # type: ignore[arg-type]
    ):
        layers = [n for n in range(1, 2000) if training_memory(_like_llama(n), settings, 2).whole <= room]
        size = _like_llama(max(layers)).parameters if layers else 0
        said.append(f"{size / 1e9:.1f} B parameters with {name}")
    return Check(
        "largest model that one worker trains", "yes", f"about {', '.join(said)}; more workers by zero_stage: 3"
    )


def _like_llama(layers: int) -> ModelSize:
    return size_of(LIKE_LLAMA | {"num_hidden_layers": layers})


def _loaded(experiment: Experiment, benchmark: Benchmark) -> list[Check]:
    """What is wrong with what the experiment will load, if anything."""
    model, wrong = experiment.model, []
    named = [("model.path", model.path, model.revision), ("model.retain", model.retain, model.retain_revision)]
    checks: list[Callable[[], None]] = [lambda: check_metrics(experiment, benchmark)]
    for key, path, revision in named:
        if path is not None and model.endpoint is None:
            checks.append(partial(_check_model, path, revision, model, key))
    for check in checks:
        try:
            check()
        except UserError as error:
            wrong.append(Check("models", "no", str(error)))
    return wrong


def _check_model(path: str, revision: str | None, model: ModelSection, key: str) -> None:
    check_model(model_source(path, revision, model.trust_remote_code, key, identified=False), model, key)


def _plan(
    experiment: Experiment,
    store: Store,
    machines: list[Node],
    attacks: Callable[[Experiment, Benchmark], Sequence[TrainSection]] | None,
    imagined: bool = False,
) -> list[Check]:
    """Whether the experiment fits; on an imagined machine nothing is asked of what is installed or loaded here."""
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    given = experiment.sampling.gpus
    found = 1.0 if any(node.gpus for node in machines) or cluster_may_grow() else 0.0
    gpus = found if given is None else given
    filled, checks = experiment, list[Check]()
    if not imagined:
        try:
            filled = with_engine(experiment, gpus > 0)
        except UserError as error:
            checks.append(Check("sampling.engine", "no", str(error)))
    filled = filled.with_protocol(benchmark.protocol).on_devices(gpus, fast_bf16())
    checks += [] if imagined else _loaded(filled, benchmark)
    devices = sum(len(node.gpus) for node in machines)
    for section in [filled.train_section(each) for each in filled.methods] + [
        each for each in (filled.finetune_section,) if each is not None
    ]:
        cores = sum(node.cores for node in machines)
        if section.workers > cores and not cluster_may_grow():
            checks.append(Check("train.workers", "no", f"{section.workers} workers, {cores:g} cores; ask for fewer"))
            break
        if imagined and section.workers > devices:
            said = f"{section.workers} workers, {devices} GPUs; set workers to {devices} at most"
            checks.append(Check("train.workers", "no", said))
            break
    model = filled.model
    with contextlib.ExitStack() as stack:
        source: ModelSource | None = None
        if model.path is not None and model.endpoint is None:
            source = model_source(model.path, model.revision, model.trust_remote_code, identified=False)
        elif model.path is None:
            import tempfile

            from transformers.utils import logging

            logging.disable_progress_bar()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
            benchmark.base_model(folder, experiment.seed)
            source = ModelSource(str(folder), "")
        size = model_size(source) if source is not None else None
    if size is None and model.endpoint is None:
        checks.append(Check("plan", "note", f"{model.path}: its size is not known here, so only the disk is planned"))
    states = {"yes": "yes", "tight": "note", "unknown": "note", "no": "no"}
    training = attacks(filled, benchmark) if attacks is not None else ()
    items = plan(filled, benchmark, size, machines, kept(store.root), training)
    return checks + [Check(f"plan: {each.what}", states[each.fits], str(each).partition(": ")[2]) for each in items]
