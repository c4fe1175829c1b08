"""Likelihoods as a stage: a model and (prompt, answer) pairs in, what it says of every answer token out, as parquet.

Teacher-forced, batched and fanned over the cluster; the unit is a fixed group of pairs, whatever the number of workers.
Encodes as the training does. Knows nothing of what is computed from the likelihoods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.base import Example
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import counted, read_units, unit_counts, unit_seconds
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.models.chat_template import Options
from engine.models.loading import context_length, worker_model
from engine.models.source import ModelSource
from engine.stages.base import Stage, fingerprint_examples, numerics

if TYPE_CHECKING:
    from pyarrow import Table
    from torch import Tensor

    from engine.models.causal_lm import CausalLM
    from engine.models.tokenization import Encoded, Tokenizer


LIKELIHOOD_VERSION = 4  # part of every likelihood stage's fingerprint: raise it when the numbers change
UNIT_PAIRS = 256  # a unit's work, in answers read without a gradient
GRADIENT_PAIRS = 8  # what an answer takes whose gradient norm is wanted, which no others share a batch with
BATCH_PAIRS = 32
CHUNK_LOGITS = {"cpu": 2**18, "cuda": 2**27}  # read together: on a CPU as many as its cache takes
BATCH_LOGITS = {"cpu": 2**26, "cuda": 2**30}  # held at once: 256 MiB in float32, 2 GiB in bfloat16


@dataclasses.dataclass(frozen=True)
class LikelihoodJob(Stage):
    """The likelihood of every example's answer after its question, under one model.

    gradients: ids of the examples whose gradient norm is wanted too, a backward pass each. workers, cpus, bf16,
    portable: as SampleJob has them.
    """

    model: ModelSource
    examples: tuple[Example, ...]
    gradients: frozenset[str] = frozenset()
    template: str = "auto"
    system: str | None = None
    template_options: Options | None = None
    max_length: int = 4096
    gpus: float = 0.0
    cpus: int | None = None
    bf16: bool = False
    portable: bool = False
    workers: int | None = None
    kind: ClassVar[str] = "likelihood"
    title: ClassVar[str] = "likelihoods"

    @property
    def units(self) -> int:
        return len(self.slices())

    @property
    def amount(self) -> float:
        """Pairs, one with a gradient norm as many as take its time."""
        return float(len(self.examples) + (GRADIENT_PAIRS - 1) * len(self.gradients))

    def slices(self) -> list[slice]:
        """The examples of each unit, by work: examples with gradients take longer."""
        begins, work = [0], 0
        for index, example in enumerate(self.examples):
            own = GRADIENT_PAIRS if example.id in self.gradients else 1
            if work and work + own > UNIT_PAIRS:
                begins.append(index)
                work = 0
            work += own
        return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(self.examples)], strict=True)]

    def inputs(self) -> JsonObject:
        return {
            "model": self.model.identity,
            "examples": fingerprint_examples(self.examples),
            "gradients": fingerprint(sorted(self.gradients)),
            "template": self.template,
            "system": self.system,
            **({"template_options": self.template_options} if self.template_options else {}),
            "max_length": self.max_length,
            "numerics": numerics(self.gpus, self.portable, self.bf16),
            "version": LIKELIHOOD_VERSION,
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units`; returns how many pairs there are and how many of them were cut, and seconds of work."""
        fan_out(
            self, self.units, work / "units", report, self.workers, self.gpus, cpus=self.cpus, portable=self.portable
        )
        cut = unit_counts(work / "units").get("truncated", 0)
        return {"pairs": len(self.examples), "truncated": cut, "seconds": unit_seconds(work / "units")}

    def compute(self, unit: int) -> tuple[Table, str]:
        """One row an example: `nll`, and of its answer's tokens their ids and what the model says of them."""

        model, tokenizer = worker_model(self.model, self.gpus > 0, self.bf16)
        examples = self.examples[self.slices()[unit]]
        cut = sum(each.truncated for each in _encoded(model, tokenizer, examples, self))
        return counted(as_table(token_likelihoods(model, tokenizer, examples, self)), {"truncated": cut}), ""


@dataclasses.dataclass(frozen=True)
class TokenLikelihoods:
    """What a model says of one answer.

    nll: mean over all labelled tokens, the end token included, nats a token. The lists are of the answer's own tokens,
    without the end token: their ids, the ids of the model's argmax, log-probabilities, and mean and standard deviation
    of log p under p itself over the vocabulary. gradient_norm: see engine.metrics.privacy, None where not asked for.
    """

    nll: float
    token_ids: list[int]
    argmax: list[int]
    logprobs: list[float]
    means: list[float]
    stds: list[float]
    gradient_norm: float | None


def token_likelihoods(
    model: CausalLM, tokenizer: Tokenizer, examples: Sequence[Example], job: LikelihoodJob
) -> list[TokenLikelihoods]:
    """The TokenLikelihoods of each example, in their order; examples of like length share a batch."""
    from engine.models.chat_template import stop_token_ids

    encoded = _encoded(model, tokenizer, examples, job)
    ends = set(stop_token_ids(tokenizer, job.template_options))
    found: dict[int, TokenLikelihoods] = {}
    waiting = sorted(range(len(encoded)), key=lambda index: -len(encoded[index].input_ids))
    vocabulary = model.get_output_embeddings().weight.shape[0]
    while waiting:
        longest = len(encoded[waiting[0]].input_ids)
        size = max(1, min(BATCH_PAIRS, BATCH_LOGITS[model.device.type] // (longest * vocabulary)))
        chosen, waiting = waiting[:size], waiting[size:]
        gradients = [examples[index].id in job.gradients for index in chosen]
        rows = _batch(model, tokenizer, [encoded[index] for index in chosen], ends, gradients)
        found.update(zip(chosen, rows, strict=True))
    return [found[index] for index in range(len(encoded))]


def _encoded(model: CausalLM, tokenizer: Tokenizer, examples: Sequence[Example], job: LikelihoodJob) -> list[Encoded]:
    """The examples as training encodes them, cut to what the job allows and the model's context holds."""
    from engine.models.tokenization import encode_example

    longest = min(job.max_length, context_length(model) or job.max_length)
    return [
        encode_example(tokenizer, each.question, each.answer, job.template, job.system, longest, job.template_options)
        for each in examples
    ]


def _batch(
    model: CausalLM, tokenizer: Tokenizer, encoded: list[Encoded], ends: set[int], gradients: list[bool]
) -> list[TokenLikelihoods]:
    import torch

    from engine.metrics.privacy import gradient_norm
    from engine.models.tokenization import IGNORED, collate, pad_token_id
    from methods.base import token_logits

    pad = pad_token_id(tokenizer)
    with torch.inference_mode():
        logits_BTV, labels_BT = token_logits(model, collate(encoded, pad).to(model.device))
    rows = []
    for each, logits_TV, labels_T, wanted in zip(encoded, logits_BTV, labels_BT, gradients, strict=True):
        kept_T = labels_T != IGNORED
        tokens = labels_T[kept_T]
        logprobs_T, means_T, variances_T, argmax_T = _said(logits_TV[kept_T], tokens)
        size = len(tokens) - int(len(tokens) > 0 and int(tokens[-1]) in ends)  # the end token is no part of the text
        norm = None
        if wanted:
            labels = [*each.labels[:-1], IGNORED] if size < len(tokens) else each.labels
            text = dataclasses.replace(each, labels=labels)
            norm = gradient_norm(model, collate([text], pad).to(model.device))
        rows.append(
            TokenLikelihoods(
                nll=float(-logprobs_T.mean()),
                token_ids=tokens[:size].tolist(),
                argmax=argmax_T[:size].astype(int).tolist(),
                logprobs=logprobs_T[:size].tolist(),
                means=means_T[:size].tolist(),
                stds=np.sqrt(variances_T[:size]).tolist(),
                gradient_norm=norm,
            )
        )
    return rows


def _said(logits_TV: Tensor, tokens_T: Tensor) -> np.ndarray:
    """Log-probabilities of the tokens, mean and variance of log p under p, and argmax: float64 [4, T].

    Few positions at a time: their logits are read some ten times, on a CPU out of its cache, where those of a whole
    answer would come from main memory.
    """
    import torch

    size = max(1, CHUNK_LOGITS[logits_TV.device.type] // logits_TV.shape[1])
    found = []
    for logits, tokens in zip(logits_TV.split(size), tokens_T.split(size), strict=True):
        most, argmax = logits.max(dim=-1, keepdim=True)
        below = logits.float() - most  # log p but for the logarithm of the sum of all weights
        weights = below.exp()
        total = weights.sum(-1)
        mean = (weights * below).sum(-1) / total
        told = below.gather(-1, tokens[:, None])[:, 0]
        below -= mean[:, None]
        variance = weights.mul_(below).mul_(below).sum(-1) / total
        said = (told, mean, variance, argmax[:, 0], total)
        found.append(torch.stack([each.double() for each in said]))
    rows = torch.cat(found, dim=1).cpu().numpy()
    # torch takes logarithms and roots by MKL, whose last bits are the processor's own.
    rows[:2] -= np.array([math.log(each) if each == each else each for each in rows[4].tolist()])
    return rows[:4]


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """The likelihoods of a finished stage by (question, answer). index: its row in `table`, an Arrow table."""

    index: dict[tuple[str, str], int]
    table: Table

    def of(self, pairs: Sequence[tuple[str, str]]) -> list[TokenLikelihoods]:
        """What the model says of each (question, answer), in their order."""
        return [TokenLikelihoods(**row) for row in self.table.take([self.index[pair] for pair in pairs]).to_pylist()]

    def nll(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Mean negative log-likelihood of each (question, answer): float64 [pairs]."""
        return self.table["nll"].to_numpy()[[self.index[pair] for pair in pairs]]


def read_likelihoods(folder: Path, examples: Sequence[Example]) -> Likelihoods:
    """The likelihoods of a finished stage over `examples`."""
    return Likelihoods({(each.question, each.answer): row for row, each in enumerate(examples)}, read_units(folder))


def as_table(rows: Sequence[TokenLikelihoods]) -> Table:
    """The rows as an Arrow table, which is what a unit holds."""
    import pyarrow

    ids, numbers = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float64())
    columns = {"nll": pyarrow.float64(), "token_ids": ids, "argmax": ids, "logprobs": numbers, "means": numbers}
    columns |= {"stds": numbers, "gradient_norm": pyarrow.float64()}
    return pyarrow.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=pyarrow.schema(columns))
