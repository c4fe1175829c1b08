"""Encoder models (pair classifiers, embeddings) over many texts: loading by name or folder, length-sorted batches.

Knows nothing of what the outputs mean. Only safetensors weights are read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.fingerprint import stamps, visible_files

UNKNOWN_SHARE = 0.5  # of a text's tokens
UNREAD = "the model's vocabulary lacks most of the reference; give one of its language as the metric's option model"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model in evaluation mode with its tokenizer; max_tokens: the longest input it takes, special tokens and all."""

    path: str
    revision: str | None
    model: Any
    tokenizer: Any
    max_tokens: int


def load_encoder(auto_class: str, path: str) -> Encoder:
    """The model at `path` (folder or hub name) as transformers' `auto_class`, on the GPU if any; kept in this process
    for as long as its files stay as they are.

    float32. UserError where it is not there, not whole, or no such model.
    """
    return _loaded(auto_class, path, _stamps(path))


def identity(where: str, *, model: str, **_: object) -> str:
    """What decides the scores of a metric that runs an encoder, beside its options: a digest of the files of `model`, a
    folder, or the commit of a hub name. where: the key that asked for it. UserError where it is not there."""
    return _content(model, where, _stamps(model))


def _stamps(path: str) -> tuple[tuple[str, int, int], ...]:
    folder = Path(path).expanduser()
    return stamps(visible_files(folder)) if folder.is_dir() else ()


@functools.lru_cache(maxsize=8)
def _content(path: str, where: str, _: tuple[tuple[str, int, int], ...]) -> str:
    from engine.models.source import model_source

    return model_source(path, where=where).identity


@functools.lru_cache(maxsize=2)
def _loaded(auto_class: str, path: str, _: tuple[tuple[str, int, int], ...]) -> Encoder:
    import torch
    import transformers

    from engine.models.source import model_source

    source = model_source(path, where="model")
    where = {"revision": source.revision, "trust_remote_code": False}
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.path, **where)
        loader = getattr(transformers, auto_class)
        model = loader.from_pretrained(source.path, dtype=torch.float32, use_safetensors=True, **where)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {path}: cannot be loaded as {auto_class}: {first}") from error
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = int(min(tokenizer.model_max_length, positions))
    return Encoder(source.path, source.revision, model.to(device).eval(), tokenizer, longest)


def check_encoder(where: str, path: str, label: str | None = None) -> None:
    """UserError unless there is a model at `path` (folder or hub name) and, where asked for, it has this one label.

    where: the key that asked for it. Reads its configuration, no weights.
    """
    from transformers import AutoConfig

    from engine.models.source import model_source

    source = model_source(path, where=where)
    try:
        config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {path} cannot be loaded: {first}") from error
    if label is not None:
        label_index(config.id2label, label, path)


def run_batches(
    encoder: Encoder, inputs: dict[str, list[list[int]]], batch_size: int, output: Callable[[Any, Any], Any]
) -> NDArray[np.float64]:
    """output(model's result, batch) of every input, in their order: float64 [inputs, ...].

    inputs: what the tokenizer returned, not padded. Inputs of like length share a batch; each GPU batch that does not
    fit in memory is halved.
    """
    import torch

    ids = inputs["input_ids"]
    waiting = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    found: list[tuple[list[int], NDArray[np.float64]]] = []
    while waiting:
        chosen = waiting[:batch_size]
        rows = {name: [column[index] for index in chosen] for name, column in inputs.items()}
        batch = encoder.tokenizer.pad(rows, return_tensors="pt").to(encoder.model.device)
        try:
            with torch.inference_mode():
                found.append((chosen, output(encoder.model(**batch), batch).double().cpu().numpy()))
        except torch.cuda.OutOfMemoryError:
            if len(chosen) == 1:
                raise
            batch_size = len(chosen) // 2
            continue
        waiting = waiting[len(chosen) :]
    order = np.argsort(np.concatenate([chosen for chosen, _ in found]))
    return np.concatenate([values for _, values in found])[order]


def label_index(id2label: dict[int, str], label: str, model: str) -> int:
    """Index of the one label of this name, in any case. UserError where there is none or more than one."""
    found = [int(index) for index, name in id2label.items() if str(name).strip().lower() == label.lower()]
    if len(found) != 1:
        names = ", ".join(str(name) for name in id2label.values())
        raise UserError(f"model {model}: needs one label named {label}, found {names}; give a classifier with it")
    return found[0]


def unread(path: str, auto_class: str, references: Sequence[str]) -> set[str]:
    """The references of which the model's vocabulary lacks so much that its output tells nothing: none in ASCII."""
    foreign = [text for text in set(references) if not text.isascii() and any(map(str.isalnum, text))]
    if not foreign:
        return set()
    tokenizer = load_encoder(auto_class, path).tokenizer
    rows = tokenizer(clean(foreign), add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return {text for text, row in zip(foreign, rows, strict=True) if row.count(unknown) > UNKNOWN_SHARE * len(row)}


def clean(texts: Sequence[str]) -> list[str]:
    """Texts that tokenizers take: a lone surrogate, which is no character, becomes a question mark."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
