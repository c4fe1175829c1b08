"""Which tokenised examples each step of a training sees.

A `TrainJob` and a step number come in; the micro-batches of one worker come out, a pure function of (seed, step), so
that a killed training goes on to the same bits and workers see different examples. Knows nothing of optimisers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.base import Example
from engine.train.job import TrainJob, accumulation

if TYPE_CHECKING:
    from torch.nn import Module

    from engine.models.tokenization import Encoded, Tokenizer
    from methods.base import TokenBatch, UnlearnBatch


class Batches:
    """Which tokenised examples each step sees, for one worker; `reference` is handed on with each batch."""

    def __init__(
        self, job: TrainJob, needs: frozenset[str], tokenizer: Tokenizer, rank: int, reference: Module | None = None
    ) -> None:
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
        return sum(sequence.truncated for sequence in (*self.forget, *self.retain, *self.alternate))

    @property
    def longest(self) -> int:
        """Tokens of the longest training sequence."""
        return max((len(sequence.input_ids) for sequence in (*self.forget, *self.retain, *self.alternate)), default=0)

    def names(self, step: int) -> list[str]:
        """Ids of the examples of the set that drives this step, over all workers."""
        examples = self.job.forget or self.job.retain
        return [
            examples[index].id for index in batch_indices(len(examples), self.settings.batch_size, self._seed(0), step)
        ]

    def at(self, step: int) -> list[UnlearnBatch]:
        """The micro-batches of one step for this worker."""
        from methods.base import UnlearnBatch

        size = self.settings.batch_size
        if not self.forget:
            retain = self._token_batches(self.retain, None, size, 0, step)
            return [UnlearnBatch(retain=batch) for batch in retain]
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

    def to(self, batch: UnlearnBatch, device: str) -> UnlearnBatch:
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
        self, encoded: list[Encoded], reference: tuple[float, ...] | None, size: int, stream: int, step: int
    ) -> list[TokenBatch]:
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


def _encode(examples: tuple[Example, ...], tokenizer: Tokenizer, job: TrainJob) -> list[Encoded]:
    from engine.models.tokenization import encode_example

    return [
        encode_example(
            tokenizer,
            example.question,
            example.answer,
            job.template,
            job.system,
            job.settings.max_length,
            job.template_options,
        )
        for example in examples
    ]
