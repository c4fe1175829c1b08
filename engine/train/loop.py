"""The one training loop: fine-tuning and every unlearning method, on one worker or many.

A `TrainJob` (model, method, examples, settings), a backend that moves the weights and a `Worker` come in; a folder with
the trained model in Hugging Face's layout comes out. Killed, it goes on from its last checkpoint to the same bits.
Knows nothing of Ray or of where workers run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.config.sections import TrainSection
from engine.errors import DivergedError, InterruptedTrainingError, UserError
from engine.jsonl import JsonObject
from engine.models.loading import context_length
from engine.train.backend import Backend
from engine.train.batches import Batches
from engine.train.checkpoint import Checkpoints, TrainState, resumed
from engine.train.export import finish
from engine.train.job import TrainJob
from engine.train.validation import enough, watch

if TYPE_CHECKING:
    from engine.cluster.reporter import Row
    from methods.base import Method, UnlearnBatch

TRAIN_VERSION = 4  # part of every training's fingerprint: raise it when the loop's results change
NAMED = 6  # examples of a batch that an error names
WATCHED = "watch."  # before the names of what validation measures, in a step's history


class StepReport(Protocol):
    """Told of every step that is done."""

    def __call__(self, done: float, note: str = "", force: bool = False, row: Row | None = None) -> None: ...


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of the workers that train a model: its number, the training's folder on its machine, who is told of its
    steps, whether it is to save and stop, and where its checkpoints stand."""

    rank: int
    folder: Path
    report: StepReport
    stopping: Callable[[], bool]
    checkpoints: Checkpoints


def train_loop(job: TrainJob, backend: Backend, worker: Worker) -> JsonObject:
    """Steps from where the training stands to its end, then the export; the same on every worker. Returns its facts.

    UserError where a sequence is longer than the model's context, DivergedError where a number is not finite,
    InterruptedTrainingError where it is to stop, after a checkpoint.
    """
    from engine.models.tokenization import load_tokenizer
    from methods import make_method

    method = make_method(job.method)
    tokenizer = load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision)
    reference = backend.frozen(job.model) if "reference_model" in method.needs else None
    batches = Batches(job, method.needs, tokenizer, worker.rank, reference)
    _check_length(backend, batches)
    state = resumed(job, backend, method, worker.checkpoints)
    backend.model.train()
    end, began = job.until or job.steps, time.monotonic() - state.seconds
    alone = job.settings.alone
    try:
        while state.step < end and not _reached(state, job.settings):
            lr = job.settings.lr * lr_factor(state.step, job.steps, job.settings)
            step = take_step(backend, method, batches, state, lr, not alone and worker.stopping())
            state.history.append(step.losses | state.method)
            state.step += 1
            state.method = method.next_state(state.method, state.history[-1], batches.epochs(state.step))
            measured = {}
            if job.settings.watches and state.step % job.settings.eval_every == 0:
                measured = watch(backend.model, tokenizer, job, state.step)
                state.history[-1] |= {f"{WATCHED}{name}": value for name, value in measured.items()}
            _tell(worker.report, state, measured, end, job.settings)
            state.seconds = time.monotonic() - began
            stop = worker.stopping() if alone else step.stop  # workers agree in a step, one alone need not
            if (stop or state.step % job.settings.checkpoint_every == 0) and state.step < end:
                _check_weights(backend, state.step)
                worker.checkpoints.save(backend, state)
                state.saved = state.step
                if stop:
                    raise InterruptedTrainingError(f"stopped after step {state.step} of {job.steps}")
    except DivergedError as error:
        kept = f"; the checkpoint of step {state.saved} is kept in {worker.folder}" if state.saved else ""
        raise DivergedError(f"{error}; try a smaller learning rate{kept}") from error
    state.seconds = round(state.seconds, 3)
    finish(job, backend, tokenizer, worker.folder, worker.rank, method, state)
    last = state.history[-1]["total"] if state.history else None
    facts = {"steps": state.step, "seconds": state.seconds, "truncated": batches.truncated}
    return facts | ({"last_loss": last} if worker.rank == 0 else {})


def _check_length(backend: Backend, batches: Batches) -> None:
    limit = context_length(backend.model)
    if limit is not None and batches.longest > limit:
        raise UserError(
            f"train.max_length: a training sequence takes {batches.longest} tokens, but the model's context holds "
            f"{limit}; set train.max_length (model.finetune.max_length where it is fine-tuned) to at most {limit}"
        )


def _reached(state: TrainState, settings: TrainSection) -> bool:
    """Whether what validation measured at the last step ends the training."""
    last = state.history[-1] if state.history else {}
    measured = {name.removeprefix(WATCHED): value for name, value in last.items() if name.startswith(WATCHED)}
    return enough(measured, settings)


def _tell(report: StepReport, state: TrainState, measured: dict[str, float], end: int, settings: TrainSection) -> None:
    last = state.history[-1]
    notes = [f"loss {last['total']:.4g}", *(f"{name} {value:.3f}" for name, value in measured.items())]
    if measured and settings.eval_samples is not None:
        report(state.step, ", ".join(notes), state.step == end, row=last)
    else:
        report(state.step, ", ".join(notes), state.step == end)


@dataclasses.dataclass(frozen=True)
class Step:
    """losses: "total", "forget", "retain" over all micro-batches and workers, and "lr". stop: whether any worker is to
    stop, so that all do after the same step."""

    losses: dict[str, float]
    stop: bool


def take_step(backend: Backend, method: Method, batches: Batches, state: TrainState, lr: float, stopping: bool) -> Step:
    """One optimiser step over its micro-batches. DivergedError where the loss or its gradient is not finite."""
    apart, number = "two_gradients" in method.needs, state.step
    micro_batches = [
        dataclasses.replace(batches.to(batch, backend.device), state=state.method) for batch in batches.at(number)
    ]
    sums, norm = np.zeros(3), 0.0
    for index, batch in enumerate(micro_batches):
        batches.seed_dropout(number, index)
        with backend.autocast:
            loss = method.loss(backend.module if apart else backend.model, batch)
        if apart:
            backend.apart.add(loss.forget, loss.retain)
        else:
            norm = backend.accumulate(loss.total, index == len(micro_batches) - 1, lr)
        sums += [float(part.detach()) for part in loss]
    if apart:
        norm = _step_apart(backend, method, batches, micro_batches, number, lr)
    means = np.append(sums / len(micro_batches), float(stopping))
    total, forget, retain, stop = _mean_over_workers(means, backend.device)
    if not (math.isfinite(total) and math.isfinite(norm)):
        what = f"loss is {total}" if not math.isfinite(total) else f"the gradient is not finite (its norm is {norm})"
        raise DivergedError(
            f"{what} at step {number + 1} (forget {forget}, retain {retain}; examples {_some(batches.names(number))})"
        )
    return Step({"total": total, "forget": forget, "retain": retain, "lr": lr}, stop > 0)


def _step_apart(
    backend: Backend, method: Method, batches: Batches, micro_batches: list[UnlearnBatch], number: int, lr: float
) -> float:
    """The step along the two gradients that are gathered, the forget gradient taken again from moved weights where the
    method wants it; the norm of the combined gradient."""
    if method.radius:
        with backend.moved(method.radius):
            for index, batch in enumerate(micro_batches):
                batches.seed_dropout(number, index)
                with backend.autocast:
                    forget = method.forget_loss(backend.module, batch)
                backend.apart.add_forget(forget)
    return backend.step_apart(lr, functools.partial(method.gradient_weights, state=micro_batches[0].state))


def _some(names: list[str]) -> str:
    """The first names of a batch, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _check_weights(backend: Backend, step: int) -> None:
    """DivergedError unless all weights are numbers on every worker: a checkpoint is one to go on from."""
    broken, *_ = _mean_over_workers(np.array([float(not backend.finite()), 0.0, 0.0]), backend.device)
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
