"""The backend of many workers: DeepSpeed under any ZeRO stage (engine/train/backend.py); Ray Train has the process
group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.sections import TrainSection
from engine.jsonl import JsonObject
from engine.models.loading import load_model
from engine.models.lora import switched_off, with_adapter
from engine.models.source import ModelSource
from engine.train.backend import all_finite
from engine.train.two_gradients import TwoGradients, Weights

if TYPE_CHECKING:
    from torch import Tensor


class DeepSpeedBackend:
    """Any number of workers under ZeRO 0-3; the process group is Ray Train's."""

    def __init__(
        self,
        source: ModelSource,
        settings: TrainSection,
        accumulation: int,
        device: str,
        seed: int,
        rank: int,
        apart: bool = False,
    ) -> None:
        """apart: steps come by step_apart, which leads DeepSpeed through one backward pass a step."""
        _start(device)
        import deepspeed
        import torch

        config = deepspeed_config(settings, 1 if apart else accumulation)
        if settings.zero_stage == 3:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self._zero_init = HfDeepSpeedConfig(config)  # from_pretrained shards while it loads as long as this lives
        model = load_model(source, "cpu" if settings.zero_stage == 3 else device, settings.precision)
        self.adapted = settings.lora is not None
        if settings.lora is not None:
            model = with_adapter(model, settings.lora, source.path, source.revision, seed)
        self.module = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.model, self.optimizer, _, _ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
        self.device, self.rank, self.stage, self.precision = device, rank, settings.zero_stage, settings.precision
        self.autocast = torch.autocast("cpu", enabled=False)
        self.apart = TwoGradients(trained, accumulation)

    def accumulate(self, total: Tensor, last: bool, lr: float) -> float:
        self.model.backward(total)
        return self._step(last, lr)

    @contextlib.contextmanager
    def moved(self, radius: float) -> Iterator[None]:
        """As TorchBackend's; each worker holds the weights whole meanwhile, those that they are put back to."""
        _mean_over_workers(self.apart.forget)
        with self._whole():
            before = self.apart.move(radius)
        yield
        with self._whole():
            self.apart.restore(before)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """All trained weights at hand on every worker, to be changed by all alike."""
        import deepspeed

        sharded = self.stage == 3
        parameters: list[Any] = self.apart.parameters  # with what ZeRO hangs on them
        for parameter in parameters if sharded else ():
            # The hook that would end a module's backward pass does not fire for the first one, whose input has no
            # gradient; DeepSpeed clears up after it at the end of its own backward pass, which this was not.
            parameter.ds_active_sub_modules.clear()
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=sharded):
            yield

    def step_apart(self, lr: float, weights: Weights) -> float:
        """As TorchBackend's, of gradients of losses through `module`, since the wrapper's own backward pass is for one.

        Each worker holds both gradients whole, whatever the ZeRO stage.
        """
        import deepspeed

        _mean_over_workers([*self.apart.forget, *self.apart.retain])
        gradients, parameters = self.apart.combined(weights), self.apart.parameters
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.stage == 3):
            # A loss whose gradient is the combined one: the way into DeepSpeed's own reduction, clipping and step. The
            # prologue is what DeepSpeed hooks to its own forward pass, which this loss has not come through.
            loss: Any = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
            loss.register_hook(lambda _: self.model._backward_prologue())
            self.model.backward(loss)
        return self._step(True, lr)

    def _step(self, last: bool, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.step()
        norm = self.model.get_global_grad_norm()  # None without ZeRO in float32
        return float(norm) if last and norm is not None else 0.0

    def finite(self) -> bool:
        return all_finite([getattr(parameter, "ds_tensor", parameter) for parameter in self.module.parameters()])

    def save(self, folder: Path) -> None:
        """Each rank writes its shard; the shards of all ranks in one folder are the checkpoint."""
        self.model.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=self.adapted)

    def load(self, folder: Path) -> None:
        self.model.load_checkpoint(str(folder), tag="state", load_module_strict=not self.adapted)

    def export(self, folder: Path) -> None:
        state = None
        if self.stage == 3:
            # collective: every rank takes part
            state = self.model._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=self.adapted)
        if self.rank == 0:
            if state is None:
                state = self.module.state_dict()
            apart = {"save_embedding_layers": False} if self.adapted else {}
            self.module.save_pretrained(folder, state_dict=state, **apart)

    def frozen(self, source: ModelSource) -> Any:
        """The target model, to read hidden states or logits of: the adapter switched off, or a second model, sharded
        like the trained one."""
        if self.adapted:
            return switched_off(self.model)
        if self.stage == 3:
            return sharded_model(source, self.precision, self.device)
        return load_model(source, self.device, self.precision).requires_grad_(False)


def sharded_model(source: ModelSource, precision: str, device: str) -> Any:
    """A model to read alone, its weights sharded over the workers of the process group."""
    _start(device)
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": 3},
    }
    sharding = HfDeepSpeedConfig(config)  # as long as it lives from_pretrained shards while it loads
    model = load_model(source, "cpu", precision).requires_grad_(False)
    del sharding
    wrapped = deepspeed.initialize(model=model, config=config)[0]
    wrapped.eval()
    return wrapped


def _start(device: str) -> None:
    """DeepSpeed on this worker's device, over Ray Train's process group."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device == "cpu":
        _skip_shared_memory_build()
    deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl")


def _mean_over_workers(gradients: list[Tensor]) -> None:
    """Make each gradient the mean over all workers'."""
    import torch

    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
        gradient /= torch.distributed.get_world_size()


def deepspeed_config(settings: TrainSection, accumulation: int) -> JsonObject:
    """DeepSpeed's configuration for these settings; torch's AdamW, so that nothing is compiled at run time."""
    local = settings.batch_size // settings.workers // accumulation
    zero: JsonObject = {"stage": settings.zero_stage, "stage3_gather_16bit_weights_on_model_save": True}
    if settings.offload is not None:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": local,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.clip,
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": zero,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": list(settings.betas),
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
                "adam_w_mode": True,
            },
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _skip_shared_memory_build() -> None:
    """Keep DeepSpeed from compiling its CPU shared-memory collectives (a minute) where gloo serves."""
    from deepspeed import ops

    compatible = getattr(ops, "__compatible_ops__", None)
    if isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False
