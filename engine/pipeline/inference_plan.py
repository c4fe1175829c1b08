"""The plan's lines for workers that only read a model: sampling, likelihoods, reference log-probabilities.

An experiment with its protocol, the size of its model and the nodes come in; Items come out.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.base import Benchmark
from engine.cluster.hardware import Node
from engine.config.experiment import Experiment
from engine.evaluation.benchmark_metrics import likelihood_examples
from engine.models.size import ModelSize
from engine.pipeline.memory_model import PROCESS, likelihood_memory, reference_memory, sampling_memory
from engine.pipeline.plan_items import CONTEXT, Item, beside, on_gpus, room
from engine.pipeline.planned_parts import Training
from engine.stages.likelihood import BATCH_LOGITS

PROMPT_TOKENS = 256  # of a prompt, where only tokenising would tell
LEAST_ROWS = 16  # the sampler goes down to so many cache rows


def sampling_item(experiment: Experiment, size: ModelSize, nodes: Sequence[Node]) -> Item:
    """Whether the sampling workers that run at once fit."""
    sampling = experiment.sampling
    gpus = sampling.gpus or 0.0
    length = PROMPT_TOKENS + (sampling.max_new_tokens or 1)
    need = sampling_memory(size, length, LEAST_ROWS, sampling.precision == "bf16")
    devices = [gpu for node in nodes for gpu in node.gpus]
    if gpus:
        have = _share_of_gpu(gpus, nodes)
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
    have, workers = beside(sampling.workers, nodes)
    possible = int(have * workers // need)
    fits = "yes" if need <= have else "no"
    instead = (f"sampling.workers: {possible}",) if fits == "no" and possible else ()
    return Item(
        "sample, a worker", need, have, fits, f"{workers} at once on CPUs; {sampling.precision} weights", instead
    )


def reference_items(
    wanted: Sequence[Training], experiment: Experiment, size: ModelSize, nodes: Sequence[Node]
) -> list[Item]:
    """Whether the workers fit that take the target model's log-probabilities before these trainings."""
    items, gpus = {}, experiment.sampling.gpus or 0.0
    for settings in (each.settings for each in wanted if each.logprobs):
        sharded = settings.zero_stage == 3 and settings.workers > 1
        on_gpu = on_gpus(settings, nodes) if sharded else gpus > 0
        process = 0.0 if on_gpu else PROCESS
        need = reference_memory(size, settings, BATCH_LOGITS["cuda" if on_gpu else "cpu"], on_gpu) + process
        sure = reference_memory(size, settings, 0, on_gpu) + process
        alone = _share_of_gpu(gpus, nodes) if gpus else beside(1, nodes)[0]
        have = room(settings.workers, nodes) if sharded else alone
        fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
        instead = ("train.zero_stage: 3 with more train.workers",) if fits == "no" else ()
        detail = f"{settings.workers} workers, ZeRO 3, {settings.precision}" if sharded else "one worker"
        items[detail] = Item("reference log-probabilities, a worker", need, have, fits, detail, instead)
    return list(items.values())


def likelihood_item(experiment: Experiment, benchmark: Benchmark, size: ModelSize, nodes: Sequence[Node]) -> Item:
    """Whether the workers that take likelihoods, and gradient norms where the benchmark reads them, fit."""
    sampling, gradients = experiment.sampling, bool(likelihood_examples(benchmark)[1])
    gpus = sampling.gpus or 0.0
    logits = BATCH_LOGITS["cuda" if gpus else "cpu"]
    half = sampling.precision == "bf16"
    need = likelihood_memory(size, logits, 3 if gradients else 1, half)  # tied weights gather two gradients at once
    sure = likelihood_memory(size, 0, 2 if gradients else 1, half)
    if gpus:
        have = _share_of_gpu(gpus, nodes)
        place = f"{_gpus(gpus)} a worker"
    else:
        need, sure = need + PROCESS, sure + PROCESS
        have, workers = beside(sampling.workers, nodes)
        place = f"{workers} at once on CPUs"
    fits = "unknown" if not have else "yes" if need <= have else "tight" if sure <= have else "no"
    instead = ("benchmark.attacks without gradnorm",) if gradients and fits in ("tight", "no") else ()
    detail = f"{place}; {sampling.precision} weights{', and gradients for their norms' if gradients else ''}"
    return Item("likelihoods, a worker", need, have, fits, detail, instead)


def _share_of_gpu(gpus: float, nodes: Sequence[Node]) -> float:
    """Bytes that a worker has on its share of the smallest GPU; 0 where there is none."""
    devices = [gpu for node in nodes for gpu in node.gpus]
    return (min(gpu.memory for gpu in devices) - CONTEXT) * min(gpus, 1.0) if devices else 0.0


def _gpus(count: float) -> str:
    return f"{count:g} GPU{'s' if count > 1 else ''}"
