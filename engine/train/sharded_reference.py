"""Reference log-probabilities of a model that no one worker holds: sharded by ZeRO-3, as in training.

A ReferenceJob and the training's settings come in, the same file of numbers comes out, the same to rounding.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import ClassVar

from engine.cluster import ray_cluster
from engine.cluster.reporter import Report
from engine.config.sections import TrainSection
from engine.jsonl import JsonObject
from engine.models.lora import is_adapter
from engine.stages.base import Stage
from engine.stages.reference import LOGPROBS, ReferenceJob, encoded_answers, logprobs_of, rows_at_once
from engine.store.work_dir import open_workplace
from engine.train.launch import cpus_a_worker, gpus_a_worker, on_workers


@dataclasses.dataclass(frozen=True)
class ShardedReference(Stage):
    """The numbers of `job` by the workers of a training with these `settings`, a part of the examples each."""

    job: ReferenceJob
    settings: TrainSection
    kind: ClassVar[str] = ReferenceJob.kind
    title: ClassVar[str] = ReferenceJob.title

    @property
    def units(self) -> int:
        return 1

    def inputs(self) -> JsonObject:
        settings = self.settings
        return self.job.inputs() | {"numerics": f"zero3-{settings.precision}", "workers": settings.workers}

    def run(self, work: Path, report: Report) -> JsonObject:
        """Write `logprobs.json` as ReferenceJob does. UserError where the workers do not fit on the cluster."""
        settings = self.settings
        gpus = gpus_a_worker(settings)
        ray_cluster.check_fits(settings.workers, gpus, "train.workers")
        config = {"job": self.job, "precision": settings.precision, "place": open_workplace(work), "report": report}
        on_workers(reference_worker, config, settings.workers, gpus > 0, cpus_a_worker(settings, self.job.portable))
        return {"examples": len(self.job.examples)}


def reference_stage(job: ReferenceJob, settings: TrainSection) -> Stage:
    """The stage that takes reference log-probabilities for a training: by its workers together where they share the
    model, else by one, and so of an adapter, which cannot be merged into shards."""
    shared = settings.zero_stage == 3 and settings.workers > 1 and not is_adapter(Path(job.model.path))
    return ShardedReference(job, settings) if shared else job


def reference_worker(config: JsonObject, rank: int, device: str) -> None:
    """One of the workers. config: `job`, `precision`, `place` and `report`."""
    import torch

    from engine.models.tokenization import load_tokenizer, pad_token_id
    from engine.train.deepspeed_backend import sharded_model

    job: ReferenceJob = config["job"]
    if rank == 0:
        config["report"].begin()
    model = sharded_model(job.model, config["precision"], device)
    workers = torch.distributed.get_world_size()
    tokenizer = load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision)
    encoded = encoded_answers(job, tokenizer)
    rows = rows_at_once(encoded, model.module.config.get_text_config().vocab_size, torch.device(device).type)
    own = encoded[rank::workers]
    own += encoded[:1] * (math.ceil(len(encoded) / workers) - len(own))  # all workers take part in every forward pass
    parts: list[list[float]] = [[] for _ in range(workers)]
    torch.distributed.all_gather_object(parts, logprobs_of(model, own, rows, pad_token_id(tokenizer), device))
    if rank == 0:
        values = [parts[index % workers][index // workers] for index in range(len(encoded))]
        (Path(config["place"].folder) / LOGPROBS).write_text(json.dumps(values))
