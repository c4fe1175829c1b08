"""Bytes that a model takes in training, in sampling and on disk, by formula.

A model's configuration and the settings come in, bytes come out. The formulas stand in docs/clusters.md; how far they
are from what was measured, in perf/results/plan.md. Knows nothing of machines or of what fits.
"""

from __future__ import annotations

import dataclasses

from engine.config.sections import TrainSection
from engine.models.size import ModelSize

GIB = 2**30
PROCESS = 0.7 * GIB  # a worker's own: Python, Ray, torch, transformers, DeepSpeed
BUCKET = 500_000_000  # elements of DeepSpeed's default reduce bucket
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered at most, its default stage3_max_live_parameters
ROW_LOGITS = 16  # bytes a vocabulary entry of a sampled row: logits and probabilities


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training worker while it takes a step; `offloaded` of them stand in main memory beside a GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    reference: float = 0.0
    offloaded: float = 0.0

    @property
    def whole(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.reference

    @property
    def on_device(self) -> float:
        return self.whole - self.offloaded


def training_memory(
    size: ModelSize,
    settings: TrainSection,
    graphs: int = 1,
    reference: bool = False,
    copies: int = 0,
    layers: int | None = None,
) -> TrainingMemory:
    """What one worker holds at the height of a step.

    graphs: forward passes whose activations stand at once (forget, retain, alternate answers). reference: a second,
    frozen model. copies: so many numbers more a trained weight, whole on every worker. layers: decoder layers that the
    loss runs, None all of them and the head; without DeepSpeed the others have no gradients and no optimizer state.
    Full sequences of max_length are counted, so shorter data take less.
    """
    every, workers, stage = size.parameters, settings.workers, settings.zero_stage
    deepspeed = workers > 1 or stage > 0
    reached = size.reached(layers)
    adapter = size.adapter(settings.lora) if settings.lora is not None else 0
    trained = adapter or (every if deepspeed else reached)
    half = settings.precision == "bf16"
    width = 2 if half and deepspeed else 4  # bytes of a stored weight; alone, bf16 means autocast
    share = workers if stage >= 3 else 1
    held = every + adapter
    gathered = min(LIVE, held) * width if stage >= 3 and workers > 1 else 0
    weights = held * width / share + gathered + (2 * reached if half and not deepspeed else 0)
    gradients = trained * width / (workers if stage >= 2 else 1)
    if 1 <= stage <= 2:
        gradients += min(BUCKET, trained) * width
    gradients += copies * trained * width
    master = 4 if deepspeed and (stage > 0 or half) else 0  # ZeRO's float32 copy
    if half and deepspeed and stage == 0:
        master += 4  # and float32 gradients
    optimizer = trained * (8 + master) / (workers if stage >= 1 else 1)
    copy = every * width / share if reference and settings.lora is None else 0.0
    offloaded = {None: 0.0, "optimizer": optimizer, "parameters": optimizer + weights - gathered}[settings.offload]
    held_bytes = activations(size, settings, width, layers) * graphs
    return TrainingMemory(weights, gradients, optimizer, held_bytes, copy, offloaded)


def sure_memory(size: ModelSize | None, settings: TrainSection, reference: bool = False) -> float:
    """Bytes that a training's one worker on a CPU holds at the least: all but activations, which the data decide; 0
    where the model's size is not known."""
    if size is None:
        return 0.0
    memory = training_memory(size, settings, reference=reference)
    return memory.whole - memory.activations + PROCESS


def activations(size: ModelSize, settings: TrainSection, width: int, layers: int | None) -> float:
    """Bytes that one forward pass of a micro-batch keeps for its backward pass, without checkpointing; with `layers`,
    of so many decoder layers without the head."""
    local = settings.batch_size // settings.workers
    tokens = (settings.micro_batch_size or local) * settings.max_length
    width = 2 if settings.precision == "bf16" else width
    layer = width * (7 * size.hidden + 4 * size.query + 3 * size.kv + 4 * size.intermediate) + 8 * size.hidden
    if layers is not None:
        return float(tokens * min(layers, size.layers) * layer)
    return tokens * (size.layers * layer + 12 * size.vocabulary)


def sampling_memory(size: ModelSize, length: int, rows: int, half: bool) -> float:
    """Bytes of one sampling worker: weights (in bfloat16: half), and `rows` cache rows of `length` tokens."""
    width = 2 if half else 4
    row = 2 * size.layers * size.kv * length * width + size.vocabulary * ROW_LOGITS
    return size.parameters * width + rows * row


def likelihood_memory(size: ModelSize, logits: int, copies: int, half: bool) -> float:
    """Bytes of one worker that takes likelihoods: `copies` numbers a weight (in bfloat16: half), itself and its
    gradients, and a batch of `logits` numbers with their logarithms and probabilities."""
    width = 2 if half else 4
    return (size.parameters * copies + 3 * logits) * width


def reference_memory(size: ModelSize, settings: TrainSection, logits: int, half: bool) -> float:
    """Bytes of one worker that takes reference log-probabilities for a training: of many under ZeRO-3 its share of the
    weights and what is gathered of them, else the whole model (in bfloat16: half); and a batch of `logits` numbers."""
    if settings.zero_stage < 3 or settings.workers == 1:
        return likelihood_memory(size, logits, 1, half)
    width = 2 if settings.precision == "bf16" else 4
    held = size.parameters / settings.workers + min(LIVE, size.parameters)
    return (held + 3 * logits) * width


def checkpoint_bytes(size: ModelSize, settings: TrainSection) -> float:
    """Disk of one training at its height: two checkpoints, for a new one is whole before the old one goes."""
    trained = size.adapter(settings.lora) if settings.lora is not None else size.parameters
    deepspeed = settings.workers > 1 or settings.zero_stage > 0
    half = settings.precision == "bf16" and deepspeed
    return 2.0 * trained * ((2 if half else 4) + 8 + (4 if deepspeed and (half or settings.zero_stage) else 0))


def model_bytes(size: ModelSize, settings: TrainSection) -> float:
    """Disk of the finished model, or of the adapter alone."""
    if settings.lora is not None and not settings.lora.merge:
        return 4.0 * size.adapter(settings.lora)
    half = settings.precision == "bf16" and (settings.workers > 1 or settings.zero_stage > 0)
    return size.parameters * (2.0 if half else 4.0)


def generation_bytes(samples: int, tokens: int) -> float:
    """Disk of samples of at most so many tokens: text, token ids, two log-probabilities, and their scores."""
    return samples * (8.0 * tokens + 60)
