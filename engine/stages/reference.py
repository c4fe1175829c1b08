"""Log-probability of each answer under the frozen target model, computed once: no second model stands beside training.

NPO, DPO and their kin need this one number a sequence, S_ref = -sum of the labelled tokens' cross-entropy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.base import Example
from engine.cluster.reporter import Report
from engine.jsonl import JsonObject
from engine.models.chat_template import Options
from engine.models.loading import worker_model
from engine.models.source import ModelSource
from engine.stages.base import Stage, fingerprint_examples, numerics, portable_inputs
from engine.stages.likelihood import BATCH_LOGITS
from engine.store.work_dir import at_work, open_workplace

if TYPE_CHECKING:
    from engine.models.tokenization import Encoded, Tokenizer

REFERENCE_VERSION = 5  # part of every such stage's fingerprint: raise it when the numbers change
MOST_ROWS = 64  # of a batch, fewer where a vocabulary is large
LOGPROBS = "logprobs.json"


@dataclasses.dataclass(frozen=True)
class ReferenceJob(Stage):
    """Answers whose log-probability under `model` is wanted, encoded as the training encodes them. gpus: of the worker,
    which computes in bfloat16 there. portable: in arithmetic that CPUs share (engine/cluster/numerics.py). One worker
    computes them: engine/train/sharded_reference.py has models that no one worker holds."""

    model: ModelSource
    examples: tuple[Example, ...]
    template: str = "auto"
    system: str | None = None
    template_options: Options | None = None
    max_length: int = 512
    gpus: float = 0.0
    portable: bool = False
    kind: ClassVar[str] = "reference"
    title: ClassVar[str] = "reference log-probabilities"

    @property
    def units(self) -> int:
        return 1

    def inputs(self) -> JsonObject:
        return {
            "model": self.model.identity,
            "examples": fingerprint_examples(self.examples),
            "template": self.template,
            "system": self.system,
            **({"template_options": self.template_options} if self.template_options else {}),
            "max_length": self.max_length,
            "version": REFERENCE_VERSION,
            **({"numerics": numerics(self.gpus, bf16=True)} if self.gpus else portable_inputs(self.portable)),
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Write `logprobs.json`, a float for each example in order; returns their number."""
        import ray

        from engine.cluster import ray_cluster
        from engine.cluster.numerics import worker_environment

        task = ray.remote(at_work).options(
            name="reference",
            num_cpus=1,
            num_gpus=self.gpus,
            max_retries=3,
            scheduling_strategy=ray_cluster.ANYWHERE,
            runtime_env=worker_environment(self.portable, self.gpus),
        )
        values = ray.get(task.remote(open_workplace(work), report.begin, answer_logprobs, self, self.gpus > 0))
        (work / LOGPROBS).write_text(json.dumps(values))
        return {"examples": len(values)}


def read_reference(folder: Path) -> tuple[float, ...]:
    """The log-probabilities of a finished reference stage, in the order of its examples."""
    return tuple(json.loads((folder / LOGPROBS).read_text()))


def answer_logprobs(job: ReferenceJob, on_gpu: bool) -> list[float]:
    """Sum of log-probabilities of the labelled tokens, one float an example."""
    from engine.models.tokenization import pad_token_id

    model, tokenizer = worker_model(job.model, on_gpu, bf16=on_gpu)
    encoded = encoded_answers(job, tokenizer)
    rows = rows_at_once(encoded, model.get_output_embeddings().weight.shape[0], model.device.type)
    return logprobs_of(model, encoded, rows, pad_token_id(tokenizer), str(model.device))


def encoded_answers(job: ReferenceJob, tokenizer: Tokenizer) -> list[Encoded]:
    """The job's examples as token ids, in their order."""
    from engine.models.tokenization import encode_example

    return [
        encode_example(
            tokenizer, each.question, each.answer, job.template, job.system, job.max_length, job.template_options
        )
        for each in job.examples
    ]


def rows_at_once(encoded: Sequence[Encoded], vocabulary: int, device_type: str) -> int:
    """Sequences of a batch: as many as BATCH_LOGITS allows of the longest."""
    longest = max((len(each.input_ids) for each in encoded), default=1)
    return max(1, min(MOST_ROWS, BATCH_LOGITS[device_type] // (longest * vocabulary)))


def logprobs_of(model: Any, encoded: Sequence[Encoded], rows: int, pad: int, device: str) -> list[float]:
    """Sum of log-probabilities (natural) of the labelled tokens: a float a sequence, in their order, `rows` of them in
    a forward pass."""
    import torch

    from engine.models.tokenization import collate
    from methods.base import sequence_nll

    values: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(encoded), rows):
            nll, _ = sequence_nll(model, collate(encoded[start : start + rows], pad).to(device))
            values += (-nll.double()).tolist()
    return values
