"""Loading a Hugging Face causal LM, and its tokenizer, into this process. Only safetensors weights are read.

Knows nothing of how a model is used.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cluster import ray_cluster
from engine.errors import UserError, disk_is_full, one_line
from engine.models.attention import group_queries
from engine.models.lora import adapter_base, is_adapter, merged
from engine.models.source import ModelSource
from engine.store.replica import at_home, mirror_of, present

if TYPE_CHECKING:
    from engine.models.tokenization import Tokenizer


def load_model(source: ModelSource, device: str = "cpu", precision: str = "fp32") -> Any:
    """The causal LM of `source` in evaluation mode, its weights in float32 or bfloat16 on `device`; an adapter folder
    gives its base model with the adapter merged."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    present(source.path)
    if is_adapter(Path(source.path)):
        return merged(load_model(below(source), device, precision), Path(source.path)).eval()
    loader: Any = AutoModelForCausalLM  # typed as if it gave no loading info
    try:
        model, found = loader.from_pretrained(
            source.path,
            output_loading_info=True,
            revision=source.revision,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{source.path}: the model cannot be loaded ({one_line(str(error))[:200]})") from error
    if missing := sorted(found["missing_keys"]):  # transformers would fill them by chance
        raise UserError(
            f"{source.path}: its weights lack {len(missing)} of the model's parameters, {missing[0]} first; are these "
            "the weights of this configuration?"
        )
    return model.to(device).eval()


def below(adapter: ModelSource) -> ModelSource:
    """The model that an adapter folder was trained on, where it stands on this machine."""
    path, revision = adapter_base(Path(adapter.path))
    mirror = mirror_of(Path(adapter.path))
    path = str(at_home(Path(path), Path(mirror.root))) if mirror is not None else path
    return ModelSource(path, "", revision, adapter.trust_remote_code)


def context_length(model: Any) -> int | None:
    """Most tokens that the model takes, None where its configuration does not say."""
    return context_of(getattr(model, "module", model).config)  # DeepSpeed's engine has a configuration of its own


def context_of(config: Any) -> int | None:
    """The same from a model's configuration."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


@functools.lru_cache(maxsize=2)
def cached_model(source: ModelSource, device: str, precision: str) -> tuple[Any, Tokenizer]:
    """(model, tokenizer) of `source`, kept in this process: a warm worker does not load the same model again."""
    from engine.models.tokenization import load_tokenizer

    tokenizer = load_tokenizer(source.path, source.trust_remote_code, source.revision)
    group_queries()
    return load_model(source, device, precision), tokenizer


def worker_model(source: ModelSource, on_gpu: bool = False, bf16: bool = False) -> tuple[Any, Tokenizer]:
    """(model, tokenizer) as every worker that samples or scores takes them, on a CPU with the threads that Ray gives
    it."""
    if not on_gpu:
        ray_cluster.take_threads()
    return cached_model(source, "cuda" if on_gpu else "cpu", "bf16" if bf16 else "fp32")
