"""The backend of one worker: plain torch, without DeepSpeed (engine/train/backend.py)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.sections import TrainSection
from engine.models.loading import load_model
from engine.models.lora import switched_off, trained_state, with_adapter
from engine.models.source import ModelSource
from engine.train.backend import all_finite
from engine.train.two_gradients import TwoGradients, Weights

if TYPE_CHECKING:
    from torch import Tensor


class TorchBackend:
    """One worker, no DeepSpeed: torch AdamW with float32 weights; bf16 means autocast."""

    def __init__(
        self,
        source: ModelSource,
        settings: TrainSection,
        accumulation: int,
        device: str,
        seed: int,
        portable: bool = False,
    ) -> None:
        """portable: a step's arithmetic on a CPU is that of any other CPU (engine/cluster/numerics.py)."""
        import torch

        self.device, self.accumulation, self.clip = device, accumulation, settings.clip
        self.precision = settings.precision
        self.model = load_model(source, device)
        self.adapted = settings.lora is not None
        if settings.lora is not None:
            self.model = with_adapter(self.model, settings.lora, source.path, source.revision, seed)
        self.module = self.model
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The fused step takes roots by the processor's own instruction, which rounds alike everywhere; the plain one by
        # MKL's `sqrt`, which does not, whatever MKL_CBWR says.
        fused = True if portable and device == "cpu" else None
        self.optimizer = torch.optim.AdamW(
            trained, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=fused
        )
        self.autocast = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.precision == "bf16")
        self.apart = TwoGradients(trained, accumulation)

    def accumulate(self, total: Tensor, last: bool, lr: float) -> float:
        (total / self.accumulation).backward()
        return self._step(lr) if last else 0.0

    @contextlib.contextmanager
    def moved(self, radius: float) -> Iterator[None]:
        before = self.apart.move(radius)
        yield
        self.apart.restore(before)

    def step_apart(self, lr: float, weights: Weights) -> float:
        for parameter, gradient in zip(self.apart.parameters, self.apart.combined(weights), strict=True):
            parameter.grad = gradient
        return self._step(lr)

    def _step(self, lr: float) -> float:
        import torch

        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def finite(self) -> bool:
        return all_finite(self.apart.parameters)

    def save(self, folder: Path) -> None:
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        state = trained_state(self.model) if self.adapted else self.model.state_dict()
        torch.save({"model": state, "optimizer": self.optimizer.state_dict()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        import torch

        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"], strict=not self.adapted)
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder, **({"save_embedding_layers": False} if self.adapted else {}))

    def frozen(self, source: ModelSource) -> Any:
        if self.adapted:
            return switched_off(self.model)
        return load_model(source, self.device, self.precision).requires_grad_(False)
