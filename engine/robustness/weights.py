"""Attacks that change weights and train nothing, as a stage: a model and an attack in, `model/` out.

Runs as one task; the result is a plain model in float32, so that everything else takes it as any other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from engine.cluster import ray_cluster
from engine.cluster.numerics import worker_environment
from engine.cluster.reporter import Report
from engine.errors import UserError
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

    version: ClassVar[int]

    def change(self, model: nn.Module, other: nn.Module | None) -> None:
        """Change the model's weights in place; `other`: the second model that the attack reads."""
        ...

    def model_dump(self, *, exclude: set[str]) -> dict[str, object]: ...


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
            "attack": {"name": self.name, **self.attack.model_dump(exclude={"seed"})},  # nothing of it is random
            "model": self.model.identity,
            "other": self.other.identity if self.other is not None else None,
            "version": WEIGHTS_VERSION,
            **({"attack_version": self.attack.version} if self.attack.version > 1 else {}),
            **portable_inputs(self.portable),
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Write `model/`."""
        import ray

        task = ray.remote(at_work).options(
            name="attack",
            num_cpus=1,
            max_retries=3,
            scheduling_strategy=ray_cluster.ANYWHERE,
            runtime_env=worker_environment(self.portable),
        )
        place = open_workplace(work)
        ray.get(task.remote(place, report.begin, _change, self, work / "model"))
        place.receive()
        return {}


def _change(job: WeightsJob, folder: Path) -> None:
    import torch

    from engine.models.tokenization import load_tokenizer

    model = load_model(job.model)
    with torch.no_grad():
        job.attack.change(model, load_model(job.other) if job.other is not None else None)
    model.save_pretrained(folder)
    load_tokenizer(job.model.path, job.model.trust_remote_code, job.model.revision).save_pretrained(folder)


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """Views [out, in] of the weights of all linear layers, by name: to be read, and changed in place.

    Those of a mixture's experts, which stand in one tensor, are rows one below the other. Without the output head,
    which quantisation and pruning leave alone (it is often the embedding too). UserError where none is found.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            found[name] = module.weight.data
        elif isinstance(module, Conv1D):  # a linear layer of GPT-2, [in, out]
            found[name] = module.weight.data.t()
        elif not isinstance(module, nn.modules.conv._ConvNd):
            experts = {key: each for key, each in module.named_parameters(recurse=False) if each.ndim == 3}
            found |= {f"{name}.{key}": each.data.flatten(0, 1) for key, each in experts.items()}
    if not found:
        raise UserError(f"attacks: {type(model).__name__} has no linear layers that could be rounded or pruned")
    return found
