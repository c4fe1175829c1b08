"""What a training is asked to do, and which tokenised examples each of its steps sees.

A `TrainJob` and a step number come in; the micro-batches of one worker come out, a pure function of (seed, step), so
that a killed training goes on to the same bits and workers see different examples. Knows nothing of optimisers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.base import Example, Probe
from engine.config.sections import TrainSection
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
    """

    model: ModelSource
    method: dict[str, Any]
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
    watch_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    watch_tokens: int = 32
    continue_from: str | None = None
    keep_state: bool = False
    until: int | None = None
    resume: str | None = None

    @property
    def steps(self) -> int:
        """Number of optimiser steps: as asked, or the epochs over the forget set (over all data in fine-tuning)."""
        if self.settings.steps is not None:
            return self.settings.steps
        return self.steps_in(self.settings.epochs)

    def steps_in(self, epochs: float) -> int:
        """Steps that so many passes over the set that drives them take."""
        return math.ceil(epochs * len(self.forget or self.retain) / self.settings.batch_size)


class Batches:
    """Which tokenised examples each step sees, for one worker; `reference` is handed on with each batch."""

    def __init__(self, job: TrainJob, needs: frozenset[str], tokenizer: Any, rank: int, reference: Any = None) -> None:
        from engine.models.tokenization import pad_token_id

        self.job, self.rank, self.pad = job, rank, pad_token_id(tokenizer)
        self.settings = job.settings
        self.forget = _encode(job.forget, tokenizer, job)
        self.retain = _encode(job.retain, tokenizer, job) if "retain" in needs or not job.forget else []
        self.alternate = _encode(job.alternate, tokenizer, job)
        self.reference = reference

    @property
    def truncated(self) -> int:
        """How many training sequences were cut to max_length."""
        return sum(each.truncated for each in (*self.forget, *self.retain, *self.alternate))

    @property
    def longest(self) -> int:
        """Tokens of the longest training sequence."""
        return max((len(each.input_ids) for each in (*self.forget, *self.retain, *self.alternate)), default=0)

    def names(self, step: int) -> list[str]:
        """Ids of the examples of the set that drives this step, over all workers."""
        examples = self.job.forget or self.job.retain
        return [
            examples[index].id for index in batch_indices(len(examples), self.settings.batch_size, self._seed(0), step)
        ]

    def at(self, step: int) -> list[Any]:
        """The micro-batches (methods.base.UnlearnBatch) of one step for this worker."""
        from methods.base import UnlearnBatch

        size = self.settings.batch_size
        if not self.forget:
            retain = self._token_batches(self.retain, None, size, 0, step)
            return [UnlearnBatch(retain=each) for each in retain]
        forget = self._token_batches(self.forget, self.job.forget_reference, size, 0, step)
        count = len(forget)
        retain = self._token_batches(self.retain, None, self.settings.retain_batch_size or size, 1, step)
        alternate = self._token_batches(self.alternate, self.job.alternate_reference, size, 0, step)
        return [
            UnlearnBatch(
                forget[index],
                retain[index] if retain else None,
                alternate[index] if alternate else None,
                self.reference,
            )
            for index in range(count)
        ]

    def epochs(self, steps: int) -> float:
        """Passes over the set that drives the steps, after so many of them."""
        return steps * self.settings.batch_size / len(self.job.forget or self.job.retain)

    def to(self, batch: Any, device: str) -> Any:
        """The batch with its tensors on `device`."""
        moved = {name: part.to(device) for name in ("forget", "retain", "alternate") if (part := getattr(batch, name))}
        return dataclasses.replace(batch, **moved)

    def seed_dropout(self, step: int, micro_batch: int) -> None:
        """Make torch's randomness (dropout, where the model has any) a function of seed, step and worker."""
        import torch

        key = [self.job.seed, step, micro_batch, self.rank]
        torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))

    def _seed(self, stream: int) -> int:
        return 2 * self.job.seed + stream

    def _token_batches(
        self, encoded: list[Any], reference: tuple[float, ...] | None, size: int, stream: int, step: int
    ) -> list[Any]:
        """This worker's share of one step's sequences of one set, as micro-batches weighted by labelled tokens."""
        from engine.models.tokenization import collate

        if not encoded:
            return []
        indices = batch_indices(len(encoded), size, self._seed(stream), step)
        count = accumulation(self.settings)
        labelled = np.array([sum(label != -100 for label in encoded[index].labels) for index in indices])
        mean = labelled.sum() / (self.settings.workers * count)
        shares = np.array_split(np.arange(size), self.settings.workers * count)
        batches = []
        for share in shares[self.rank * count : (self.rank + 1) * count]:
            chosen = [int(indices[position]) for position in share]
            logprob = [reference[index] for index in chosen] if reference is not None else None
            batch = collate([encoded[index] for index in chosen], self.pad, logprob)
            batches.append(dataclasses.replace(batch, weight=float(labelled[share].sum() / mean)))
        return batches


def batch_indices(count: int, size: int, seed: int, step: int) -> np.ndarray:
    """Indices [size] below `count` that step `step` (from 0) sees: epochs of seeded permutations, end to end."""
    positions = np.arange(step * size, (step + 1) * size)
    epochs = positions // count
    orders = {epoch: _permutation(count, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position % count] for epoch, position in zip(epochs, positions, strict=True)])


@functools.lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _encode(examples: tuple[Example, ...], tokenizer: Any, job: TrainJob) -> list[Any]:
    from engine.models.tokenization import encode_example

    return [
        encode_example(
            tokenizer,
            each.question,
            each.answer,
            job.template,
            job.system,
            job.settings.max_length,
            job.template_options,
        )
        for each in examples
    ]


def in_pieces(examples: Sequence[Example], source: ModelSource, settings: TrainSection) -> tuple[Example, ...]:
    """The examples, running text among them in pieces that a step of the training takes whole."""
    if all(each.question for each in examples):
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
