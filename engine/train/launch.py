"""A training as a stage, and where it runs: one worker without ZeRO in a warm Ray task, more under Ray Train.

A `TrainJob` comes in; a folder with the trained model in Hugging Face's layout comes out. A worker that is killed is
started again and goes on from the last checkpoint. Knows nothing of steps.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from engine.cluster import ray_cluster
from engine.cluster.numerics import worker_environment
from engine.cluster.progress import TRAINING
from engine.cluster.reporter import Report, Silent
from engine.config.sections import TrainSection
from engine.errors import DivergedError, InterruptedTrainingError, StorageError, UserError
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.metrics import known_by
from engine.stages.base import Stage, Stages, fingerprint_examples, fingerprint_probes, portable_inputs
from engine.store.lease import Claim
from engine.store.store import FinishedStage
from engine.store.work_dir import Workplace, at_work, open_workplace
from engine.train.checkpoint import FolderCheckpoints, RayTrainCheckpoints
from engine.train.job import TrainJob, accumulation, on_gpu
from engine.train.loop import TRAIN_VERSION, Worker, train_loop
from engine.train.torch_backend import TorchBackend
from methods import make_method, versions_of

MOST_CPUS = 8  # of a worker, where the experiment does not say: more threads gain little
FAILURE = "failure.json"
FACTS = "facts.json"
ENDS = (DivergedError, UserError, InterruptedTrainingError)  # that all workers come to, and no retry changes


@dataclasses.dataclass(frozen=True)
class Training(Stage):
    """The trained model of `job`."""

    job: TrainJob
    kind: ClassVar[str] = "train"
    title: ClassVar[str] = TRAINING
    lazily: ClassVar[bool] = True

    @property
    def units(self) -> int:
        return self.job.until or self.job.steps

    @property
    def amount(self) -> float:
        """Sequences."""
        return float(self.units * self.job.sequences)

    def inputs(self) -> JsonObject:
        job = self.job
        settings = job.settings.model_dump(exclude={"checkpoint_every", "gpus", "cpus"})
        if settings["offload"] is None:  # a key younger than many a store: without it fingerprints are as they were
            del settings["offload"]
        inputs = {
            "model": job.model.identity,
            "method": job.method,
            "settings": settings,
            "retain": fingerprint_examples(job.retain),
            "forget": fingerprint_examples(job.forget),
            "alternate": fingerprint_examples(job.alternate),
            "forget_reference": fingerprint(job.forget_reference),
            "alternate_reference": fingerprint(job.alternate_reference),
            "template": job.template,
            "system": job.system,
            "seed": job.seed,
            "continue_from": Path(job.continue_from).name if job.continue_from else None,
            "keep_state": job.keep_state,
            "version": TRAIN_VERSION,
            # A GPU's arithmetic is none that CPUs share.
            **portable_inputs(job.portable and job.settings.alone and not ray_cluster.has_gpus()),
        }
        if job.watch or job.watch_utility:
            inputs |= {
                "watch": fingerprint_probes(job.watch),
                "watch_utility": fingerprint_probes(job.watch_utility),
                "watch_metric": job.watch_metric,
                "watch_options": job.watch_options,
                "watch_tokens": job.watch_tokens,
                **known_by(job.watch_metric, job.watch_options),
            }
        options: JsonObject = {"template_options": job.template_options} if job.template_options else {}
        if versions := versions_of(job.method):
            options["method_versions"] = versions
        return inputs | options | ({} if job.until is None else {"until": job.until})

    def run(self, work: Path, report: Report) -> JsonObject:
        return run_training(self.job, work, report)


def train(stages: Stages, label: str, job: TrainJob) -> FinishedStage:
    """The trained model of `job`; says where training sequences were cut."""
    stage = stages.run(label, Training(job))
    if count := stage.facts.get("truncated"):
        length = job.settings.max_length
        stages.progress.say(f"train {label}: {count} training sequences are cut to max_length {length} tokens")
    return stage


def run_training(job: TrainJob, work: Path, report: Report) -> JsonObject:
    """Train on the Ray cluster and leave `model/` (and `state/` if kept) in `work`; returns the facts of the training.

    Raises UserError where the workers do not fit on the cluster, DivergedError where the loss is not finite.
    """
    import ray

    workers = job.settings.workers
    gpus = gpus_a_worker(job.settings)
    cpus = cpus_a_worker(job.settings, job.portable)
    ray_cluster.check_fits(workers, gpus, "train.workers")
    place = open_workplace(work)
    if job.settings.alone:
        task = ray.remote(at_work).options(
            name="train",
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=3,
            scheduling_strategy=ray_cluster.ANYWHERE,
            runtime_env=worker_environment(job.portable, gpus),
            **ray_cluster.memory_to_ask(0.0 if gpus else job.memory),
        )
        try:
            facts = ray.get(task.remote(place, report.begin, train_alone, job, str(work), report))
            place.receive()
        except ray.exceptions.RayTaskError as error:
            known = isinstance(error.cause, (*ENDS, StorageError))
            raise error.cause if known else error from None
    else:
        facts = train_together(job, place, report, gpus > 0, cpus)
    shutil.rmtree(work / "checkpoint", ignore_errors=True)
    return facts


def gpus_a_worker(settings: TrainSection) -> float:
    """GPUs that a training worker takes on this cluster: as set, else one where each can have its own."""
    devices = ray_cluster.resources()[1]
    if settings.gpus is not None and devices:
        return settings.gpus
    return 1.0 if devices >= settings.workers else 0.0


def cpus_a_worker(settings: TrainSection, portable: bool = False) -> int:
    """CPUs, and threads, of a training worker: one where arithmetic is portable, else as set, else a quarter of a
    node's, for others train beside it."""
    if portable:
        return 1
    if settings.cpus is not None:
        return settings.cpus
    return max(1, min(MOST_CPUS, ray_cluster.cores_of_a_node() // (4 * settings.workers)))


def train_alone(job: TrainJob, work: str, report: Report) -> JsonObject:
    """The training in this process, as a Ray task."""
    if not on_gpu():
        ray_cluster.take_threads()
    folder, device = Path(work), "cuda" if on_gpu() else "cpu"
    backend = TorchBackend(job.model, job.settings, accumulation(job.settings), device, job.seed, job.portable)
    worker = Worker(0, folder, Claim(folder).checked(report), report.stopping, FolderCheckpoints(folder))
    return train_loop(job, backend, worker)


def train_together(job: TrainJob, place: Workplace, report: Report, use_gpu: bool, cpus: int) -> JsonObject:
    """The loop under Ray Train: one DeepSpeed worker a process, restarted from the last checkpoint when one dies."""
    work = Path(place.folder)
    on_workers(train_worker, {"job": job, "place": place, "report": report}, job.settings.workers, use_gpu, cpus)
    facts = json.loads((work / FACTS).read_text())
    (work / FACTS).unlink()  # the stage's manifest holds them
    return facts


def train_worker(config: JsonObject, rank: int, device: str) -> None:
    """One of the workers of a training. config: `job`, `place` and `report`."""
    work = Path(config["place"].folder)
    facts = train_sharded(config["job"], work, config["report"], device, rank)
    if rank == 0:
        (work / FACTS).write_text(json.dumps(facts))


def on_workers(
    function: Callable[[JsonObject, int, str], None], config: JsonObject, workers: int, use_gpu: bool, cpus: int
) -> None:
    """Call `function(config, rank, device)` in each of many workers, a process group of Ray Train's, and take over what
    they write into config["place"]. A worker that dies is begun again with all others, three times at most.

    Raises what the workers raise, of ENDS, which all of them come to.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    place: Workplace = config["place"]
    work = Path(place.folder)
    (work / FAILURE).unlink(missing_ok=True)
    TorchTrainer(
        worker,
        train_loop_config=config | {"function": function},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus, "GPU": int(use_gpu)}
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="run",
            storage_path=place.shared("ray"),
            storage_filesystem=place.filesystem,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    place.receive()
    if (work / FAILURE).exists():
        name, text = json.loads((work / FAILURE).read_text())
        raise {end.__name__: end for end in ENDS}[name](text)
    shutil.rmtree(work / "ray", ignore_errors=True)


def worker(config: JsonObject) -> None:
    """One Ray Train worker. config: `function` and what it takes, among it `place`."""
    import ray.train
    import torch

    place: Workplace = config["place"]
    place.arrive()
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device()) if on_gpu() else "cpu"
    if device == "cpu":
        ray_cluster.take_threads()
    try:
        config["function"](config, context.get_world_rank(), device)
    except ENDS as error:
        # Every worker comes to it in the same step. Raised from here, Ray Train would begin again, to the same end.
        if context.get_world_rank() == 0:
            (Path(place.folder) / FAILURE).write_text(json.dumps([type(error).__name__, str(error)]))
    if place.mirror is not None:
        torch.distributed.barrier()  # every worker of a node has written its part
        if context.get_local_rank() == 0:
            place.deliver(context.get_world_rank())


def train_sharded(job: TrainJob, work: Path, given: Report, device: str, rank: int) -> JsonObject:
    """The training of one of many workers, which share the model by DeepSpeed. One of them reports."""
    from engine.train.deepspeed_backend import DeepSpeedBackend

    apart = "two_gradients" in make_method(job.method).needs
    backend = DeepSpeedBackend(job.model, job.settings, accumulation(job.settings), device, job.seed, rank, apart)
    report = given if rank == 0 else Silent()
    report.begin()
    checked = Claim(work).checked(report) if rank == 0 else report
    return train_loop(job, backend, Worker(rank, work, checked, report.stopping, RayTrainCheckpoints(rank)))
