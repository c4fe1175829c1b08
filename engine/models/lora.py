"""Low-rank adapters: the trained weights of a LoRA run, its frozen reference, and adapter folders read and edited.

A loaded causal LM comes in and a peft model goes out; with the adapter switched off it is the reference, so that no
second model is held. Knows nothing of how a step is taken.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoraSection(BaseModel):
    """Low-rank adapters instead of all weights: each adds alpha / rank * B A to a frozen layer.

    rank: of B A. alpha: over rank, the weight of B A. targets: names of the layers that get one (all-linear: every
    linear layer but the head). dropout: of an adapter's input. merge: save the merged model instead of the adapter,
    which needs its base model to load.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    merge: bool = False


def with_adapter(model: Any, lora: LoraSection, base: str, revision: str | None, seed: int) -> Any:
    """`model` with a fresh adapter, the only part that is trained (LoRA, arXiv 2106.09685); it changes nothing yet.

    base, revision: where the model came from, written into the adapter. seed: of A's random start; B starts at zero.
    UserError where `lora.targets` are not layers of the model.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    config.base_model_name_or_path, config.revision = base, revision
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
            raise UserError(
                f"train.lora.targets: {lora.targets} are not layers of this model; it has {', '.join(names)}"
            ) from error
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def switched_off(adapted: Any) -> Module:
    """The model below the adapter, as a model of its own: the frozen reference at no memory."""
    import torch

    class SwitchedOff(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["module"] = adapted  # not a submodule: its parameters are not this one's to move or save

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            training = adapted.training
            adapted.eval()  # a reference has no dropout
            with adapter_off(adapted):
                output = adapted(*args, **kwargs)
            adapted.train(training)
            return output

    return SwitchedOff()


@contextlib.contextmanager
def adapter_off(adapted: Module) -> Iterator[None]:
    """The adapter switched off for a while; wrappers (DeepSpeed's engine) are looked through."""
    inner: Any = adapted
    while not hasattr(inner, "disable_adapter"):
        inner = inner.module
    with inner.disable_adapter():
        yield


def trained_state(model: Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name: all of them, or the adapter's alone."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name in names}


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).exists()


def check_adapter(folder: Path) -> None:
    """UserError unless the adapter's weights are safetensors: peft would read a pickle in their place."""
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError(f"{folder} has no safetensors weights ({ADAPTER_WEIGHTS}); is it a whole saved adapter?")


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """(folder or hub name, revision) of the model below the adapter in `folder`. UserError where it does not say."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"]), config.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / ADAPTER_CONFIG}: does not name the adapter's base model") from error


def adapter_settings(folder: Path) -> dict[str, object]:
    """What the adapter's configuration says, but not where its base model is: its scale decides too."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if name not in ("base_model_name_or_path", "revision")}


def merged(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`base` with the adapter of `folder` added into its weights: as fast as a model that never had one."""
    from peft import PeftModel

    check_adapter(folder)
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def edit_adapter(folder: Path, edited: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A method's arithmetic on weights, on an adapter: W - W_target = B A, so that it acts on B alone, whose value in
    the target model is zero. Right for arithmetic that is linear in the difference (task vectors)."""
    from safetensors.torch import load_file, save_file

    path = folder / ADAPTER_WEIGHTS
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensors[name] = edited(tensor, tensor.new_zeros(tensor.shape)).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
