"""The end of a training: the model exported, edited by the method's arithmetic, merged, and what may go on kept.

A backend, a TrainJob and where it stands come in; `model/`, `history.json` and, where wanted, `state/` and `adapter/`
stand in the work folder. Knows nothing of how the steps were taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.models.loading import load_model
from engine.models.lora import edit_adapter, is_adapter
from engine.models.source import ModelSource
from engine.train.backend import Backend
from engine.train.checkpoint import METHOD_STATE, TrainState, replace_folder
from engine.train.job import TrainJob

if TYPE_CHECKING:
    from torch import Tensor

    from engine.models.tokenization import Tokenizer
    from methods.base import Method


def finish(
    job: TrainJob,
    backend: Backend,
    tokenizer: Tokenizer,
    work: Path,
    rank: int,
    method: Method,
    state: TrainState,
) -> None:
    """Export the model with its tokenizer, what may go on where it is kept, and every step's loss."""
    from methods.base import Method

    temporary = work / ".model"
    if job.until is not None:
        backend.save(work / "state")
        if rank == 0:
            state.write(work / "state")
    backend.export(temporary)
    if job.keep_state:
        backend.save(work / "state")
    if rank == 0:
        if job.keep_state:
            (work / "state" / METHOD_STATE).write_text(json.dumps(state.method))
        if type(method).edited is not Method.edited:
            if is_adapter(temporary):
                edit_adapter(temporary, method.edited)
            else:
                _edit_exported(temporary, job.model, method.edited)
        if job.settings.lora is not None and job.settings.lora.merge:
            _merge_exported(temporary, work / "adapter")
        tokenizer.save_pretrained(temporary)
        replace_folder(temporary, work / "model")
        (work / "history.json").write_text(json.dumps(state.history))


def _edit_exported(folder: Path, target: ModelSource, edited: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the weights of the model in `folder` by the method's arithmetic on them and the target model's."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # under ZeRO-3 it would shard what is loaded here
    model = load_model(ModelSource(str(folder), ""))
    before = dict(load_model(target).named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(edited(parameter, before[name]))
    model.save_pretrained(folder)


def _merge_exported(folder: Path, adapter: Path) -> None:
    """Put the merged model in the place of the adapter in `folder`, and the adapter aside."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    replace_folder(folder, adapter)
    load_model(ModelSource(str(adapter), "")).save_pretrained(folder)
