"""The one training loop: fine-tuning and every unlearning method, on one worker or many.

A `TrainJob` (model, method, examples, settings) comes in; a folder with the trained model in Hugging Face's layout
comes out. Killed, it goes on from its last checkpoint to the same bits. One worker without ZeRO runs in a warm Ray
task; more run under Ray Train with DeepSpeed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cluster import ray_cluster
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.errors import DivergedError, InterruptedTrainingError, StorageError, UserError
from engine.fingerprint import file_digest
from engine.models.loading import context_length
from engine.store.lease import Claim
from engine.store.replica import collect_folder, present, share_folder
from engine.store.work_dir import Workplace, at_work, open_workplace
from engine.train.export import METHOD_STATE, finish
from engine.train.job import Batches, TrainJob, accumulation, on_gpu
from engine.train.torch_backend import DeepSpeedEngine, PlainEngine, replace_folder, replaced
from engine.train.validation import enough, watch

if TYPE_CHECKING:  # methods import torch
    from methods.base import UnlearnBatch

TRAIN_VERSION = 3  # part of every training's fingerprint: raise it when the loop's results change
FAILURE = "failure.json"
ENDS = (DivergedError, UserError, InterruptedTrainingError)  # that all workers come to, and no retry changes
NAMED = 6  # examples of a batch that an error names


def run_training(job: TrainJob, work: Path, report: Any) -> dict[str, Any]:
    """Train on the Ray cluster and leave `model/` (and `state/` if kept) in `work`; returns the facts of the training.

    Raises UserError where the workers do not fit on the cluster, DivergedError where the loss is not finite.
    """
    import ray

    workers = job.settings.workers
    gpus = gpus_a_worker(job.settings)
    ray_cluster.check_fits(workers, gpus, "train.workers")
    place = open_workplace(work)
    if workers == 1 and job.settings.zero_stage == 0:
        task = ray.remote(at_work).options(
            name="train", num_cpus=1, num_gpus=gpus, max_retries=3, scheduling_strategy=ray_cluster.ANYWHERE
        )
        try:
            facts = ray.get(task.remote(place, _train_alone, job, str(work), report))
            place.receive()
        except ray.exceptions.RayTaskError as error:
            known = isinstance(error.cause, DivergedError | UserError | StorageError | InterruptedTrainingError)
            raise error.cause if known else error from None
    else:
        facts = _train_together(job, place, report, gpus > 0)
    for leftover in ("checkpoint", "ray"):
        shutil.rmtree(work / leftover, ignore_errors=True)
    return facts


def gpus_a_worker(settings: TrainSection) -> float:
    """GPUs that a training worker takes on this cluster: as asked, else one where each can have its own."""
    devices = ray_cluster.resources()[1]
    if settings.gpus is not None and devices:
        return settings.gpus
    return 1.0 if devices >= settings.workers else 0.0


def _train_alone(job: TrainJob, work: str, report: Any) -> dict[str, Any]:
    """The loop in this process, as a Ray task."""
    import torch

    torch.set_num_threads(1 if not torch.cuda.is_available() else torch.get_num_threads())
    folder = Path(work)
    engine = PlainEngine(job.model, job.settings, accumulation(job.settings), "cuda" if on_gpu() else "cpu", job.seed)
    checkpoint, claim = folder / "checkpoint", Claim(folder)

    def save(progress: dict[str, Any]) -> None:
        temporary = folder / ".checkpoint"
        shutil.rmtree(temporary, ignore_errors=True)
        engine.save(temporary)
        digest = file_digest(temporary / "state.pt")
        (temporary / "progress.json").write_text(json.dumps(progress | {"sha256": digest}))
        replace_folder(temporary, checkpoint)
        share_folder(checkpoint, order=progress["step"])

    if not checkpoint.exists() and replaced(checkpoint).exists():  # killed while one took the other's place
        replaced(checkpoint).rename(checkpoint)
    collect_folder(checkpoint, above=_steps_of(checkpoint))
    resumed = checkpoint if _steps_of(checkpoint) else _ended_earlier(job)
    return _loop(job, engine, folder, claim.checked(report), save, resumed, 0, report.stopping)


def _ended_earlier(job: TrainJob) -> Path | None:
    """The checkpoint that this same training left when it was ended earlier."""
    return present(Path(job.resume) / "state") if job.resume is not None else None


def _steps_of(checkpoint: Path) -> int:
    """Steps that a checkpoint stands at, 0 where it is not there or damaged: then the training begins anew, to the same
    bits."""
    try:
        progress = json.loads((checkpoint / "progress.json").read_text())
        return int(progress["step"]) if progress["sha256"] == file_digest(checkpoint / "state.pt") else 0
    except (OSError, ValueError, KeyError):
        return 0


def _train_together(job: TrainJob, place: Workplace, report: Any, use_gpu: bool) -> dict[str, Any]:
    """The loop under Ray Train: one DeepSpeed worker a process, restarted from the last checkpoint when one dies."""
    import os

    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    work = Path(place.folder)
    (work / FAILURE).unlink(missing_ok=True)
    TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "place": place, "report": report},
        scaling_config=ScalingConfig(num_workers=job.settings.workers, use_gpu=use_gpu),
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
        raise {each.__name__: each for each in ENDS}[name](text)
    facts = json.loads((work / "facts.json").read_text())
    (work / "facts.json").unlink()  # the stage's manifest holds them
    return facts


def _train_worker(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import ray.train
    import torch

    job, place = config["job"], config["place"]
    work = Path(place.folder)
    place.arrive()
    rank = ray.train.get_context().get_world_rank()
    device = str(ray.train.torch.get_device()) if on_gpu() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        facts = _worker_loop(job, work, config["report"], device, rank)
    except ENDS as error:
        # Every worker comes to it in the same step. Raised from here, Ray Train would begin again, to the same end.
        if rank == 0:
            (work / FAILURE).write_text(json.dumps([type(error).__name__, str(error)]))
    else:
        if rank == 0:
            (work / "facts.json").write_text(json.dumps(facts))
    if place.mirror is not None:
        torch.distributed.barrier()  # every worker of a node has written its part
        if ray.train.get_context().get_local_rank() == 0:
            place.deliver(rank)


def _worker_loop(job: TrainJob, work: Path, given: Any, device: str, rank: int) -> dict[str, Any]:
    """The loop on one worker's DeepSpeed engine, from Ray Train's last checkpoint where there is one."""
    import tempfile

    import ray.train

    from methods import make_method

    apart = "two_gradients" in make_method(job.method).needs
    engine = DeepSpeedEngine(job.model, job.settings, accumulation(job.settings), device, job.seed, rank, apart)

    def save(progress: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            engine.save(Path(temporary))
            if rank == 0:
                (Path(temporary) / "progress.json").write_text(json.dumps(progress))
            checkpoint = ray.train.Checkpoint.from_directory(temporary)
            ray.train.report({"step": progress["step"]}, checkpoint=checkpoint)

    report = Claim(work).checked(given) if rank == 0 else Silent()
    stopping = given.stopping if rank == 0 else Silent().stopping
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _loop(job, engine, work, report, save, _ended_earlier(job), rank, stopping)
    with checkpoint.as_directory() as folder:
        return _loop(job, engine, work, report, save, Path(folder), rank, stopping)


def _loop(
    job: TrainJob,
    engine: Any,
    work: Path,
    report: Callable[..., None],
    save: Callable[[dict[str, Any]], None],
    resumed: Path | None,
    rank: int,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Steps from the last checkpoint (or the start) to the end, then the export; the same on every worker."""
    from engine.models.tokenization import load_tokenizer
    from methods import make_method

    method = make_method(job.method)
    tokenizer = load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision)
    reference = engine.frozen(job.model) if "reference_model" in method.needs else None
    batches = Batches(job, method.needs, tokenizer, rank, reference)
    limit = context_length(engine.model)
    if limit is not None and batches.longest > limit:
        raise UserError(
            f"train.max_length: a training sequence takes {batches.longest} tokens, but the model's context holds "
            f"{limit}; set train.max_length (model.finetune.max_length where it is fine-tuned) to at most {limit}"
        )
    step, history, spent, clock = 0, [], 0.0, time.monotonic()
    state = method.initial_state()
    if resumed is not None:
        engine.load(resumed)
        progress = json.loads((resumed / "progress.json").read_text())
        step, history, spent, state = (progress[name] for name in ("step", "history", "seconds", "method_state"))
    elif job.continue_from is not None:
        left = present(Path(job.continue_from) / "state")
        engine.load(left)
        state = json.loads((left / METHOD_STATE).read_text())
    engine.model.train()
    saved, end = step, job.until or job.steps
    try:
        while step < end and not _stopped(history, job.settings):
            lr = job.settings.lr * lr_factor(step, job.steps, job.settings)
            losses, stop = _step(engine, method, batches, step, lr, state, stopping())
            history.append(losses | state)
            step += 1
            state = method.next_state(state, history[-1], batches.epochs(step))
            seen = {}
            if job.settings.watches and step % job.settings.eval_every == 0:
                seen = watch(engine.model, tokenizer, job, step)
                history[-1] |= {f"watch.{name}": value for name, value in seen.items()}
            notes = [f"loss {history[-1]['total']:.4g}", *(f"{name} {value:.3f}" for name, value in seen.items())]
            row = {"row": history[-1]} if seen and job.settings.eval_samples is not None else {}
            report(step, ", ".join(notes), step == end, **row)
            if (stop or step % job.settings.checkpoint_every == 0) and step < end:
                _check_weights(engine, step)
                seconds = spent + time.monotonic() - clock
                save({"step": step, "history": history, "seconds": seconds, "method_state": state})
                saved = step
                if stop:
                    raise InterruptedTrainingError(f"stopped after step {step} of {job.steps}")
    except DivergedError as error:
        kept = f"; the checkpoint of step {saved} is kept in {work}" if saved else ""
        raise DivergedError(f"{error}; try a smaller learning rate{kept}") from error
    seconds = round(spent + time.monotonic() - clock, 3)
    if job.until is not None:
        engine.save(work / "state")
        if rank == 0:
            progress = {"step": step, "history": history, "seconds": seconds, "method_state": state}
            (work / "state" / "progress.json").write_text(json.dumps(progress))
    facts = {"steps": step, "seconds": seconds, "truncated": batches.truncated, "history": history}
    return finish(job, engine, tokenizer, work, rank, method, state, facts)


def _stopped(history: list[dict[str, float]], settings: TrainSection) -> bool:
    """Whether what was seen at the last step is enough to end the training."""
    last = history[-1] if history else {}
    seen = {name.removeprefix("watch."): value for name, value in last.items() if name.startswith("watch.")}
    return enough(seen, settings)


def _step(
    engine: Any, method: Any, batches: Batches, step: int, lr: float, state: dict[str, float], stopping: bool
) -> tuple[dict[str, float], bool]:
    """One optimiser step over its micro-batches; the losses, averaged over micro-batches and workers, and whether any
    worker was asked to stop, so that all do after the same step.

    DivergedError where the loss or its gradient is not finite.
    """
    apart = "two_gradients" in method.needs
    micro_batches = [dataclasses.replace(batches.to(each, engine.device), state=state) for each in batches.at(step)]
    sums, norm = np.zeros(3), 0.0
    for index, batch in enumerate(micro_batches):
        batches.seed_dropout(step, index)
        with engine.autocast:
            loss = method.loss(engine.module if apart else engine.model, batch)
        if apart:
            engine.apart.add(loss.forget, loss.retain)
        else:
            norm = engine.accumulate(loss.total, index == len(micro_batches) - 1, lr)
        sums += [float(part.detach()) for part in loss]
    if apart:
        norm = _step_apart(engine, method, batches, micro_batches, step, lr)
    means = np.append(sums / len(micro_batches), float(stopping))
    total, forget, retain, stop = _mean_over_workers(means, engine.device)
    if not (math.isfinite(total) and math.isfinite(norm)):
        what = f"loss is {total}" if not math.isfinite(total) else f"the gradient is not finite (its norm is {norm})"
        raise DivergedError(
            f"{what} at step {step + 1} (forget {forget}, retain {retain}; examples {_some(batches.names(step))})"
        )
    return {"total": total, "forget": forget, "retain": retain, "lr": lr}, stop > 0


def _step_apart(
    engine: Any, method: Any, batches: Batches, micro_batches: list[UnlearnBatch], step: int, lr: float
) -> float:
    """The step along the two gradients that are gathered, the forget gradient taken again from moved weights where the
    method wants it; the norm of the combined gradient."""
    if method.radius:
        with engine.moved(method.radius):
            for index, batch in enumerate(micro_batches):
                batches.seed_dropout(step, index)
                with engine.autocast:
                    forget = method.forget_loss(engine.module, batch)
                engine.apart.add_forget(forget)
    return engine.step_apart(lr, functools.partial(method.gradient_weights, state=micro_batches[0].state))


def _some(names: list[str]) -> str:
    """The first names of a batch, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _check_weights(engine: Any, step: int) -> None:
    """DivergedError unless all weights are numbers on every worker: a checkpoint is one to go on from."""
    broken, *_ = _mean_over_workers(np.array([float(not engine.finite()), 0.0, 0.0]), engine.device)
    if broken:
        raise DivergedError(f"weights are not finite after step {step}")


def lr_factor(step: int, steps: int, settings: TrainSection) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, plateau, linear decay to final_lr."""
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    begin = max(settings.decay_from * steps, warmup)
    if step < begin or steps <= begin:
        return 1.0
    return 1.0 - (1.0 - settings.final_lr) * (step - begin) / (steps - begin)


def _mean_over_workers(values: np.ndarray, device: str) -> list[float]:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        values = tensor.cpu().numpy() / torch.distributed.get_world_size()
    return [float(value) for value in values]
