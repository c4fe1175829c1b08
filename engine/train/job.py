"""What a training depends on: model, method, settings and examples.

Knows nothing of how examples are tokenised or steps are taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from benchmarks.base import Example, Probe
from engine.config.sections import TrainSection
from engine.jsonl import JsonObject
from engine.models.chat_template import Options
from engine.models.source import ModelSource


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """Everything that a training depends on.

    forget_reference, alternate_reference: log-probability of each answer under the target model, in the order of
    `forget` and `alternate`, where the method needs it. watch, watch_utility: prompts to look at while training, scored
    by `watch_metric` with its options (engine/train/validation.py).
    continue_from: folder of an earlier training whose weights and optimizer state this one continues.
    until: end after that many of the steps, with all that a longer one needs to go on. resume: folder of this same
    training ended earlier, to go on from to the same bits: it saves time and changes nothing.
    portable: in arithmetic that CPUs share (engine/cluster/numerics.py), where one worker trains without DeepSpeed.
    memory: bytes that a worker on a CPU is sure to hold, for what may run beside it; 0: not known. Changes no result.
    """

    model: ModelSource
    method: JsonObject
    settings: TrainSection
    retain: tuple[Example, ...]
    forget: tuple[Example, ...] = ()
    alternate: tuple[Example, ...] = ()
    forget_reference: tuple[float, ...] | None = None
    alternate_reference: tuple[float, ...] | None = None
    template: str = "auto"
    system: str | None = None
    template_options: Options | None = None
    seed: int = 0
    watch: tuple[Probe, ...] = ()
    watch_utility: tuple[Probe, ...] = ()
    watch_metric: str = "exact_fact"
    watch_options: JsonObject = dataclasses.field(default_factory=dict)
    watch_tokens: int = 32
    continue_from: str | None = None
    keep_state: bool = False
    until: int | None = None
    resume: str | None = None
    portable: bool = False
    memory: float = 0.0

    @property
    def sequences(self) -> int:
        """Sequences a step, of all sets together."""
        settings = self.settings
        forget = settings.batch_size * (bool(self.forget) + bool(self.alternate))
        return forget + ((settings.retain_batch_size or settings.batch_size) if self.retain else 0)

    @property
    def steps(self) -> int:
        """Number of optimiser steps: as set, or the epochs over the forget set (over all data in fine-tuning)."""
        if self.settings.steps is not None:
            return self.settings.steps
        return self.steps_in(self.settings.epochs)

    def steps_in(self, epochs: float) -> int:
        """Steps that so many passes over the set that drives them take."""
        return math.ceil(epochs * len(self.forget or self.retain) / self.settings.batch_size)


def in_pieces(examples: Sequence[Example], source: ModelSource, settings: TrainSection) -> tuple[Example, ...]:
    """The examples, running text among them in pieces that a step of the training takes whole."""
    if all(example.question for example in examples):
        return tuple(examples)
    from engine.models.tokenization import chunked, load_tokenizer

    tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
    return tuple(chunked(examples, tokenizer, settings.max_length))


def accumulation(settings: TrainSection) -> int:
    """Micro-batches that a worker takes for one step."""
    local = settings.batch_size // settings.workers
    return local // (settings.micro_batch_size or local)


def on_gpu() -> bool:
    """Whether this process sees a CUDA device."""
    import torch

    return torch.cuda.is_available()
