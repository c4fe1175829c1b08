"""The plan of an experiment before work starts: what each part needs, what there is, and what would fit instead.

An experiment with its protocol, the size of its model and the nodes come in; Items come out. A training is refused only
where what it is sure to hold (weights, gradients, optimizer) is more than there is; activations are an upper bound, so
that they alone make it "tight". Knows nothing of Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from benchmarks.base import Benchmark
from engine.cluster.hardware import Node
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import likelihood_examples, wants_likelihoods
from engine.pipeline.memory_model import (
    GIB,
    PROCESS,
    ModelSize,
    TrainingMemory,
    checkpoint_bytes,
    generation_bytes,
    likelihood_memory,
    model_bytes,
    sampling_memory,
    training_memory,
)
from engine.pipeline.planned_parts import Training, attack_trainings, model_samples, models_evaluated, trainings
from engine.stages.likelihood import BATCH_LOGITS

CONTEXT = 0.8 * GIB  # of a GPU's memory: CUDA's context and what its allocator cannot use
PROMPT_TOKENS = 256  # of a prompt, where only tokenising would tell
LEAST_ROWS = 16  # the sampler goes down to so many cache rows


@dataclasses.dataclass(frozen=True)
class Item:
    """One line of the plan. need, have: bytes, of one worker or of the disk. fits: "yes", "tight", "no" or "unknown".
    detail: how the need comes about; instead: settings that would fit, with their bytes."""

    what: str
    need: float
    have: float
    fits: str
    detail: str
    instead: tuple[str, ...] = ()

    def __str__(self) -> str:
        end = {"yes": "", "tight": "; tight", "no": "; does not fit", "unknown": "; not known whether that fits"}
        have = f" of {gib(self.have)}" if self.have else ""
        advice = f"; would fit: {', '.join(self.instead)}" if self.instead else ""
        return f"{self.what}: {gib(self.need)}{have} ({self.detail}){end[self.fits]}{advice}"


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
    on_gpu = _on_gpus(settings, nodes)
    have = _room(settings.workers, nodes)
    need = (memory.on_device if on_gpu else memory.whole + PROCESS) if have else memory.whole
    sure = need - memory.activations
    fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
    if on_gpu and memory.offloaded and fits != "no":
        host = memory.offloaded + PROCESS
        if host > _share(settings.workers, nodes):
            fits, need, have = "no", host, _share(settings.workers, nodes)
    too_few = 0 < _gpus_of(nodes) < settings.workers  # which refuses it, whatever memory there is
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
    gpus = _gpus_of(nodes)
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
        memory, room = _memory(training, size, tried), _room(tried.workers, nodes)
        need = memory.on_device if _on_gpus(tried, nodes) else memory.whole + PROCESS
        host = memory.offloaded + PROCESS if _on_gpus(tried, nodes) else 0.0
        if need <= room and host <= _share(tried.workers, nodes):
            yield f"train {{{_said(change)}}} ({gib(need)})"


def _said(change: dict[str, object]) -> str:
    return ", ".join(
        f"{key}: {f'{{{_said(value)}}}' if isinstance(value, dict) else value}" for key, value in change.items()
    )


def sampling_item(experiment: Experiment, size: ModelSize, nodes: Sequence[Node]) -> Item:
    """Whether the sampling workers that run at once fit."""
    sampling = experiment.sampling
    gpus = sampling.gpus or 0.0
    length = PROMPT_TOKENS + (sampling.max_new_tokens or 1)
    need = sampling_memory(size, length, LEAST_ROWS, sampling.precision == "bf16")
    devices = [gpu for node in nodes for gpu in node.gpus]
    if gpus:
        have = (min(gpu.memory for gpu in devices) - CONTEXT) * min(gpus, 1.0) if devices else 0.0
        shared = sampling.tensor_parallel
        need /= shared
        fits = "unknown" if not devices else "yes" if need <= have and len(devices) >= shared else "no"
        fraction = gpus < 1 and devices and need <= min(gpu.memory for gpu in devices) - CONTEXT
        instead = ("sampling.gpus: 1",) if fits == "no" and fraction else ()
        if fits == "no" and not fraction:
            enough = [
                2**power for power in range(1, 5) if need * shared / 2**power <= have and 2**power <= len(devices)
            ]
            instead = (f"sampling {{engine: vllm, tensor_parallel: {enough[0]}}}",) if enough else ()
        detail = (
            f"{_gpus(shared if shared > 1 else gpus)} a worker; weights and {LEAST_ROWS} rows, more as memory allows"
        )
        return Item("sample, a worker", need, have, fits, detail, instead)
    need += PROCESS
    have, workers = _beside(sampling.workers, nodes)
    possible = int(have * workers // need)
    fits = "yes" if need <= have else "no"
    instead = (f"sampling.workers: {possible}",) if fits == "no" and possible else ()
    return Item(
        "sample, a worker", need, have, fits, f"{workers} at once on CPUs; {sampling.precision} weights", instead
    )


def likelihood_item(experiment: Experiment, benchmark: Benchmark, size: ModelSize, nodes: Sequence[Node]) -> Item:
    """Whether the workers that take likelihoods, and gradient norms where the benchmark reads them, fit."""
    sampling, gradients = experiment.sampling, bool(likelihood_examples(benchmark)[1])
    gpus, devices = sampling.gpus or 0.0, [gpu for node in nodes for gpu in node.gpus]
    logits = BATCH_LOGITS["cuda" if gpus else "cpu"]
    half = sampling.precision == "bf16"
    need = likelihood_memory(size, logits, 3 if gradients else 1, half)  # tied weights gather two gradients at once
    sure = likelihood_memory(size, 0, 2 if gradients else 1, half)
    if gpus:
        have = (min(gpu.memory for gpu in devices) - CONTEXT) * min(gpus, 1.0) if devices else 0.0
        place = f"{_gpus(gpus)} a worker"
    else:
        need, sure = need + PROCESS, sure + PROCESS
        have, workers = _beside(sampling.workers, nodes)
        place = f"{workers} at once on CPUs"
    fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
    instead = ("benchmark.attacks without gradnorm",) if gradients and fits in ("tight", "no") else ()
    detail = f"{place}; {sampling.precision} weights{', and gradients for their norms' if gradients else ''}"
    return Item("likelihoods, a worker", need, have, fits, detail, instead)


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


def _on_gpus(settings: TrainSection, nodes: Sequence[Node]) -> bool:
    return _gpus_of(nodes) >= settings.workers


def _gpus_of(nodes: Sequence[Node]) -> int:
    return sum(len(node.gpus) for node in nodes)


def _room(workers: int, nodes: Sequence[Node]) -> float:
    """Bytes that each of so many workers has: a GPU's, or its share of a node's memory; 0 where not known."""
    devices = sorted((gpu.memory for node in nodes for gpu in node.gpus), reverse=True)
    if len(devices) >= workers:
        return max(0.0, devices[workers - 1] - CONTEXT)
    return _share(workers, nodes)


def _gpus(count: float) -> str:
    return f"{count:g} GPU{'s' if count > 1 else ''}"


def _beside(workers: int | None, nodes: Sequence[Node]) -> tuple[float, int]:
    """Main memory that each sampling worker has, and how many run side by side on the node with most of it."""
    biggest = max(nodes, key=lambda node: node.memory)
    count = int(min(workers or biggest.cores, biggest.cores)) or 1
    return biggest.memory / count, count


def _share(workers: int, nodes: Sequence[Node]) -> float:
    """Main memory that each of so many workers has, packed onto as few nodes as have the cores."""
    left, shares = workers, []
    key: Callable[[Node], float] = lambda node: node.memory  # noqa: E731
    for node in sorted(nodes, key=key, reverse=True):
        here = min(left, int(node.cores))
        if here:
            shares.append(node.memory / here)
            left -= here
    return min(shares, default=0.0) if left <= 0 else 0.0


def gib(value: float) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{value / GIB:.1f} GiB" if value >= 0.05 * GIB else f"{value / 2**20:.0f} MiB"
