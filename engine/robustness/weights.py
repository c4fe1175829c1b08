"""Attacks that change weights and train nothing, as a stage: a model and an attack in, `model/` out.

Runs as one task; the result is a plain model in float32, so that everything else takes it as any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from engine.cluster import ray_cluster
from engine.cluster.numerics import worker_environment
from engine.cluster.reporter import Report
from engine.jsonl import JsonObject
from engine.models.loading import load_model
from engine.models.source import ModelSource
from engine.stages.base import Stage, portable_inputs
from engine.store.work_dir import at_work, open_workplace

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_VERSION = 1  # part of every such stage's fingerprint: raise it when attacked weights change


class ChangesWeights(Protocol):
    """An attack as this stage needs it."""

    def change(self, model: nn.Module, other: nn.Module | None) -> None:
        """Change the model's weights in place; `other`: the second model that the attack reads."""
        ...

    def model_dump(self) -> dict[str, object]: ...


@dataclasses.dataclass(frozen=True)
class WeightsJob(Stage):
    """`attack` made on `model`. other: a second model that it reads, None for none. portable: in arithmetic that CPUs
    share (engine/cluster/numerics.py)."""

    name: str
    attack: ChangesWeights
    model: ModelSource
    other: ModelSource | None = None
    portable: bool = False
    kind: ClassVar[str] = "attack"
    title: ClassVar[str] = "attack"
    lazily: ClassVar[bool] = True

    @property
    def units(self) -> int:
        return 1

    def inputs(self) -> JsonObject:
        return {
            "attack": {"name": self.name, **self.attack.model_dump()},
            "model": self.model.identity,
            "other": self.other.identity if self.other is not None else None,
            "version": WEIGHTS_VERSION,
            **portable_inputs(self.portable),
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Write `model/`; returns the share of the linear layers' weights that were changed."""
        import ray

        task = ray.remote(at_work).options(
            name="attack",
            num_cpus=1,
            max_retries=3,
            scheduling_strategy=ray_cluster.ANYWHERE,
            runtime_env=worker_environment(self.portable),
        )
        place = open_workplace(work)
        changed = ray.get(task.remote(place, _change, self, work / "model"))
        place.receive()
        return {"changed": changed}


def _change(job: WeightsJob, folder: Path) -> float:
    import torch

    from engine.models.tokenization import load_tokenizer

    model = load_model(job.model)
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(model)}
    with torch.no_grad():
        job.attack.change(model, load_model(job.other) if job.other is not None else None)
    changed = sum(int((layer.weight != before[name]).sum()) for name, layer in linear_layers(model))
    model.save_pretrained(folder)
    load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision).save_pretrained(folder)
    return changed / max(1, sum(weight.numel() for weight in before.values()))


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers by name, without the output head, which quantisation and pruning leave alone (it is often the
    embedding too)."""
    from torch import nn

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


def replace_weights(layer: nn.Linear, weight: Tensor) -> None:
    """Put `weight` in the place of the layer's own."""
    layer.weight.data.copy_(weight)
