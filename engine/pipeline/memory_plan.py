"""The plan of an experiment before work starts: what each part needs, what there is, and what would fit instead.

An experiment with its protocol, the size of its model and the nodes come in; Items come out. A training is refused only
where what it is sure to hold (weights, gradients, optimizer) is more than there is; activations are an upper bound, so
that they alone make it "tight". Knows nothing of Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.base import Benchmark
from engine.cluster.hardware import Node
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import wants_likelihoods
from engine.models.size import ModelSize
from engine.pipeline.inference_plan import likelihood_item, reference_items, sampling_item
from engine.pipeline.memory_model import (
    PROCESS,
    TrainingMemory,
    checkpoint_bytes,
    generation_bytes,
    model_bytes,
    training_memory,
)
from engine.pipeline.plan_items import Item, gib, gpus_of, on_gpus, room, share_of_memory
from engine.pipeline.planned_parts import Training, attack_trainings, model_samples, models_evaluated, trainings


def plan(
    experiment: Experiment,
    benchmark: Benchmark,
    size: ModelSize | None,
    nodes: Sequence[Node],
    kept: float = 0.0,
    attacks: Sequence[TrainSection] = (),
) -> list[Item]:
    """The plan's Items: each distinct training, sampling, disk. experiment: with its protocol and devices filled in;
    kept: bytes that the store holds already, of this experiment it may be; attacks: the settings of those that train.
    """
    wanted = trainings(experiment, benchmark) + attack_trainings(experiment, attacks)
    items = []
    if size is not None:
        items += [training_item(each, size, nodes) for each in _distinct(wanted)]
        items += reference_items(wanted, experiment, size, nodes)
        if experiment.model.endpoint is None:
            items.append(sampling_item(experiment, size, nodes))
            if wants_likelihoods(benchmark) and experiment.sampling.tensor_parallel == 1:
                items.append(likelihood_item(experiment, benchmark, size, nodes))
    return [*items, disk_item(experiment, benchmark, wanted, size, nodes, kept)]


def refuse(items: Sequence[Item]) -> None:
    """UserError where something of the plan cannot fit."""
    for item in items:
        if item.fits == "no":
            raise UserError(str(item))


def _distinct(wanted: Sequence[Training]) -> list[Training]:
    """Those that take the same memory as one, under the names of all."""
    alike: dict[str, list[Training]] = {}
    for each in wanted:
        key = each.settings.model_dump_json() + f"{each.graphs}{each.reference}{each.copies}{each.layers}"
        alike.setdefault(key, []).append(each)
    return [dataclasses.replace(some[0], label=", ".join(each.label for each in some)) for some in alike.values()]


def training_item(training: Training, size: ModelSize, nodes: Sequence[Node]) -> Item:
    """Whether one worker of a training fits where it would run."""
    settings = training.settings
    memory = _memory(training, size, settings)
    on_gpu = on_gpus(settings, nodes)
    have = room(settings.workers, nodes)
    need = (memory.on_device if on_gpu else memory.whole + PROCESS) if have else memory.whole
    sure = need - memory.activations
    fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
    if on_gpu and memory.offloaded and fits != "no":
        host = memory.offloaded + PROCESS
        if host > share_of_memory(settings.workers, nodes):
            fits, need, have = "no", host, share_of_memory(settings.workers, nodes)
    too_few = 0 < gpus_of(nodes) < settings.workers  # which refuses it, whatever memory there is
    instead = tuple(_instead(training, size, nodes)) if too_few or fits in ("no", "tight") else ()
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    place = "a GPU each" if on_gpu else "on CPUs"
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    parts |= {"activations at most": memory.activations} | ({"reference": memory.reference} if memory.reference else {})
    shown = ", ".join(f"{name} {gib(value)}" for name, value in parts.items())
    detail = f"{workers} {place}, ZeRO {settings.zero_stage}, {settings.precision}; a worker's {shown}"
    return Item(f"train {training.label}", need, have, fits, detail, instead)


def _memory(training: Training, size: ModelSize, settings: TrainSection) -> TrainingMemory:
    return training_memory(size, settings, training.graphs, training.reference, training.copies, training.layers)


def _instead(training: Training, size: ModelSize, nodes: Sequence[Node]) -> Iterator[str]:
    """Settings that would fit, as they are written in an experiment file, the mildest first."""
    settings = training.settings
    gpus = gpus_of(nodes)
    most = gpus or int(sum(node.cores for node in nodes))
    more = max((count for count in range(1, most + 1) if settings.batch_size % count == 0), default=1)
    spread: dict[str, object] = {"workers": more if gpus else max(more, settings.workers)}
    fewer: dict[str, object] = spread if 0 < gpus < settings.workers else {}
    changes: list[dict[str, object]] = [
        *([fewer] if fewer else []),
        {"micro_batch_size": 1, **fewer},
        {"zero_stage": 2, **spread},
        {"zero_stage": 3, **spread},
        {"zero_stage": 3, "micro_batch_size": 1, **spread},
    ]
    if gpus:
        changes += [
            {"zero_stage": 2, "offload": "optimizer", "micro_batch_size": 1, **spread},
            {"zero_stage": 3, "offload": "parameters", "micro_batch_size": 1, **spread},
        ]
    if settings.lora is None:
        changes += [{"lora": {"rank": 16}, **fewer}, {"lora": {"rank": 16}, "micro_batch_size": 1, **fewer}]
    for change in changes:
        try:
            tried = TrainSection.model_validate(settings.model_dump() | {"retain_batch_size": None} | change)
        except ValueError:  # the batch does not divide so
            continue
        memory, have = _memory(training, size, tried), room(tried.workers, nodes)
        need = memory.on_device if on_gpus(tried, nodes) else memory.whole + PROCESS
        host = memory.offloaded + PROCESS if on_gpus(tried, nodes) else 0.0
        if need <= have and host <= share_of_memory(tried.workers, nodes):
            yield f"train {{{_said(change)}}} ({gib(need)})"


def _said(change: dict[str, object]) -> str:
    return ", ".join(
        f"{key}: {f'{{{_said(value)}}}' if isinstance(value, dict) else value}" for key, value in change.items()
    )


def disk_item(
    experiment: Experiment,
    benchmark: Benchmark,
    wanted: Sequence[Training],
    size: ModelSize | None,
    nodes: Sequence[Node],
    kept: float,
) -> Item:
    """The most that the store may grow by, against the disk that is free below it."""
    parts = {"checkpoints": 0.0, "models": 0.0}
    if size is not None:
        written = [
            checkpoint_bytes(size, each.settings) for each in wanted if each.steps > each.settings.checkpoint_every
        ]
        parts["checkpoints"] = sum(written)  # trainings run side by side
        parts["models"] = sum(each.times * model_bytes(size, each.settings) for each in wanted)
        parts["models"] += sum(each.times * checkpoint_bytes(size, each.settings) / 2 for each in wanted if each.keeps)
    samples = model_samples(experiment, benchmark) * models_evaluated(experiment)
    parts["samples"] = generation_bytes(samples, experiment.sampling.max_new_tokens or 1)
    need = sum(parts.values())
    have = min((node.disk for node in nodes if node.disk is not None), default=0.0)
    detail = f"{samples:,} samples; at most " + ", ".join(f"{name} {gib(value)}" for name, value in parts.items())
    sure = parts["checkpoints"] + parts["models"] - kept
    fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
    instead = () if fits in ("yes", "unknown") else ("a larger disk by --store", "train.lora", "fewer methods")
    return Item("disk of the store", need, have, fits, detail, instead)
