"""The one training loop: fine-tuning and every unlearning method, on one worker or many.

A `TrainJob` (model, method, examples, settings) comes in; a folder with the trained model in Hugging Face's layout
comes out. Killed, it goes on from its last checkpoint to the same bits. One worker without ZeRO runs in a warm Ray
task; more run under Ray Train with DeepSpeed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import cluster
from engine.batches import Batches, TrainJob, accumulation, on_gpu
from engine.claim import Claim
from engine.errors import DivergedError, UserError
from engine.experiment import TrainSection
from engine.lora import edit_adapter, is_adapter
from engine.models import ModelSource, load_model
from engine.optim import DeepSpeedEngine, PlainEngine, replace_folder
from engine.store import file_digest
from engine.watch import enough, watch

TRAIN_VERSION = 3  # part of every training's fingerprint: raise it when the loop's results change
METHOD_STATE = "method.json"


def run_training(job: TrainJob, work: Path, report: Callable[..., None]) -> dict[str, Any]:
    """Train on the Ray cluster and leave `model/` (and `state/` if kept) in `work`; returns the facts of the training.

    Raises UserError where the workers do not fit on the cluster, DivergedError where the loss is not finite.
    """
    import ray

    workers = job.settings.workers
    gpus = 1.0 if cluster.resources()[1] >= workers else 0.0
    cluster.check_fits(workers, gpus, "train.workers")
    if workers == 1 and job.settings.zero_stage == 0:
        task = ray.remote(_train_alone).options(
            num_cpus=1, num_gpus=gpus, max_retries=3, scheduling_strategy=cluster.ANYWHERE
        )
        try:
            facts = ray.get(task.remote(job, str(work), report))
        except ray.exceptions.RayTaskError as error:
            known = isinstance(error.cause, DivergedError | UserError)
            raise error.cause if known else error from None
    else:
        facts = _train_together(job, work, report, gpus > 0)
    for leftover in ("checkpoint", "ray"):
        shutil.rmtree(work / leftover, ignore_errors=True)
    return facts


def _train_alone(job: TrainJob, work: str, report: Callable[..., None]) -> dict[str, Any]:
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

    resumed = checkpoint if _whole(checkpoint) else None
    return _loop(job, engine, folder, claim.checked(report), save, resumed, rank=0)


def _whole(checkpoint: Path) -> bool:
    """Whether a checkpoint stands there undamaged; without one the training begins anew, to the same bits."""
    try:
        progress = json.loads((checkpoint / "progress.json").read_text())
        return bool(progress["sha256"] == file_digest(checkpoint / "state.pt"))
    except (OSError, ValueError, KeyError):
        return False


def _train_together(job: TrainJob, work: Path, report: Callable[..., None], use_gpu: bool) -> dict[str, Any]:
    """The loop under Ray Train: one DeepSpeed worker a process, restarted from the last checkpoint when one dies."""
    import os

    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "work": str(work), "report": report},
        scaling_config=ScalingConfig(num_workers=job.settings.workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="run",
            storage_path=str(work / "ray"),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    return json.loads((work / "facts.json").read_text())


def _train_worker(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    import tempfile

    import ray.train
    import torch

    job, work = config["job"], Path(config["work"])
    rank = ray.train.get_context().get_world_rank()
    device = str(ray.train.torch.get_device()) if on_gpu() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    engine = DeepSpeedEngine(job.model, job.settings, accumulation(job.settings), device, job.seed, rank)

    def save(progress: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            engine.save(Path(temporary))
            if rank == 0:
                (Path(temporary) / "progress.json").write_text(json.dumps(progress))
            checkpoint = ray.train.Checkpoint.from_directory(temporary)
            ray.train.report({"step": progress["step"]}, checkpoint=checkpoint)

    report = Claim(work).checked(config["report"]) if rank == 0 else lambda *_, **__: None
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        facts = _loop(job, engine, work, report, save, None, rank)
    else:
        with checkpoint.as_directory() as folder:
            facts = _loop(job, engine, work, report, save, Path(folder), rank)
    if rank == 0:
        (work / "facts.json").write_text(json.dumps(facts))


def _loop(
    job: TrainJob,
    engine: Any,
    work: Path,
    report: Callable[..., None],
    save: Callable[[dict[str, Any]], None],
    resumed: Path | None,
    rank: int,
) -> dict[str, Any]:
    """Steps from the last checkpoint (or the start) to the end, then the export; the same on every worker."""
    from engine.data import load_tokenizer
    from methods import METHODS

    hyperparameters = {key: value for key, value in job.method.items() if key != "name"}
    method = METHODS[job.method["name"]](**hyperparameters)
    tokenizer = load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision)
    reference = engine.frozen(job.model) if "reference_model" in method.needs else None
    batches = Batches(job, method.needs, tokenizer, rank, reference)
    step, history, spent, clock = 0, [], 0.0, time.monotonic()
    state = method.initial_state()
    if resumed is not None:
        engine.load(resumed)
        progress = json.loads((resumed / "progress.json").read_text())
        step, history, spent, state = (progress[name] for name in ("step", "history", "seconds", "method_state"))
    elif job.continue_from is not None:
        engine.load(Path(job.continue_from) / "state")
        state = json.loads((Path(job.continue_from) / "state" / METHOD_STATE).read_text())
    engine.model.train()
    while step < job.steps:
        lr = job.settings.lr * lr_factor(step, job.steps, job.settings)
        history.append(_step(engine, method, batches, step, lr, state) | state)
        step += 1
        state = method.next_state(state, history[-1], batches.epochs(step))
        seen = {}
        if job.settings.watches and step % job.settings.eval_every == 0:
            try:
                seen = watch(engine.model, tokenizer, job)
            except DivergedError as error:
                raise DivergedError(f"{error}, seen after step {step}; try a smaller learning rate") from error
            history[-1] |= {f"watch.{name}": value for name, value in seen.items()}
        notes = [f"loss {history[-1]['total']:.4g}", *(f"{name} {value:.3f}" for name, value in seen.items())]
        if enough(seen, job.settings):
            break
        report(step, ", ".join(notes), step == job.steps)
        if step % job.settings.checkpoint_every == 0 and step < job.steps:
            seconds = spent + time.monotonic() - clock
            save({"step": step, "history": history, "seconds": seconds, "method_state": state})
    seconds = round(spent + time.monotonic() - clock, 3)
    facts = {"steps": step, "seconds": seconds, "truncated": batches.truncated, "history": history}
    return _finish(job, engine, tokenizer, work, rank, method, state, facts)


def _step(
    engine: Any, method: Any, batches: Batches, step: int, lr: float, state: dict[str, float]
) -> dict[str, float]:
    """One optimiser step over its micro-batches; returns the losses, averaged over micro-batches and workers."""
    micro_batches = batches.at(step)
    sums = np.zeros(3)
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with engine.autocast:
            loss = method.loss(engine.model, dataclasses.replace(batches.to(batch, engine.device), state=state))
        if "two_gradients" in method.needs:
            engine.accumulate_apart(loss.forget, loss.retain, last, lr, method.gradient_weights)
        else:
            engine.accumulate(loss.total, last, lr)
        sums += [float(part.detach()) for part in loss]
    total, forget, retain = _mean_over_workers(sums / len(micro_batches), engine.device)
    if not math.isfinite(total):
        raise DivergedError(
            f"loss is {total} at step {step + 1} (forget {forget}, retain {retain}; examples "
            f"{', '.join(batches.names(step)[:6])}); try a smaller learning rate"
        )
    return {"total": total, "forget": forget, "retain": retain, "lr": lr}


def _finish(
    job: TrainJob,
    engine: Any,
    tokenizer: Any,
    work: Path,
    rank: int,
    method: Any,
    state: dict[str, float],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Export the model with its tokenizer, the optimizer's and the method's state if kept, and every step's loss."""
    from methods.base import Method

    temporary = work / ".model"
    engine.export(temporary)
    if job.keep_state:
        engine.save(work / "state")
    if rank == 0:
        if job.keep_state:
            (work / "state" / METHOD_STATE).write_text(json.dumps(state))
        if type(method).edited is not Method.edited:
            if is_adapter(temporary):
                edit_adapter(temporary, method.edited)
            else:
                _edit_exported(temporary, job.model, method.edited)
        if job.settings.lora is not None and job.settings.lora.merge:
            _merge_exported(temporary, work / "adapter")
        tokenizer.save_pretrained(temporary)
        replace_folder(temporary, work / "model")
        history = facts.pop("history")
        (work / "history.json").write_text(json.dumps(history))
        facts["last_loss"] = history[-1]["total"] if history else None
    return facts


def _edit_exported(folder: Path, target: ModelSource, edited: Callable[[Any, Any], Any]) -> None:
    """Replace the weights of the model in `folder` by the method's arithmetic on them and the target model's."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 it would shard what is loaded here
    model = load_model(ModelSource(str(folder), ""))
    before = dict(load_model(target).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(edited(parameter, before[name]))
    model.save_pretrained(folder)


def _merge_exported(folder: Path, adapter: Path) -> None:
    """Put the merged model in the place of the adapter in `folder`, and the adapter aside."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    replace_folder(folder, adapter)
    load_model(ModelSource(str(adapter), "")).save_pretrained(folder)


def lr_factor(step: int, steps: int, settings: TrainSection) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, plateau, linear decay to final_lr."""
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    begin = max(settings.decay_from * steps, warmup)
    if step < begin or steps <= begin:
        return 1.0
    return 1.0 - (1.0 - settings.final_lr) * (step - begin) / (steps - begin)


def _mean_over_workers(values: np.ndarray, device: str) -> tuple[float, float, float]:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        values = tensor.cpu().numpy() / torch.distributed.get_world_size()
    total, forget, retain = (float(value) for value in values)
    return total, forget, retain
