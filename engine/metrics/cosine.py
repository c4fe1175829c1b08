"""Cosine similarity of the sentence embeddings of response and reference, clipped at 0."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.metrics import Failed
from engine.metrics.encoders import identity as identity

DEFAULT_MODEL = "sentence-transformers/paraphrase-MiniLM-L6-v2"
MODULES = {"Transformer", "Pooling", "Normalize"}  # what of sentence-transformers is done here


def check(where: str, *, model: str, **_: object) -> None:
    """UserError unless the model is there."""
    from engine.metrics.encoders import check_encoder

    check_encoder(where, model)


def cosine(
    candidates: Sequence[str], references: Sequence[str], *, model: str = DEFAULT_MODEL, batch_size: int = 64
) -> list[float | Failed]:
    """max(0, cosine) of the mean-pooled embeddings of candidate and reference: [pairs] in [0, 1].

    model: a folder or hub name; texts are cut to the length that it was made for. A blank candidate scores 0. An
    embedding that is not finite and a reference that the model's vocabulary lacks are failures. Raises ValueError for
    unequal lengths, UserError for a model that does not pool by the mean. Source: arXiv 2511.04934 (TOFU's cosine
    similarity), after sentence-transformers.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} references: they must be pairs")
    from engine.metrics.encoders import UNREAD, unread

    texts = list(dict.fromkeys(text for text in [*candidates, *references] if text.strip()))
    if not texts:
        return [0.0] * len(candidates)
    places = {text: place for place, text in enumerate(texts)}
    embeddings = _embed(texts, model, batch_size)
    dark = unread(model, "AutoModel", references)
    scores: list[float | Failed] = []
    for candidate, reference in zip(candidates, references, strict=True):
        if reference in dark:
            scores.append(Failed(UNREAD))
        elif candidate.strip() and reference.strip():
            scores.append(_similarity(embeddings[places[candidate]], embeddings[places[reference]]))
        else:
            scores.append(0.0)
    return scores


def _similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | Failed:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    if not np.isfinite(value):
        return Failed("the model's embedding is not finite")
    return min(1.0, max(0.0, value))


def _embed(texts: list[str], model: str, batch_size: int) -> NDArray[np.float64]:
    """Mean of the last hidden states over the tokens: [texts, hidden]."""
    from engine.metrics.encoders import clean, load_encoder, run_batches

    encoder = load_encoder("AutoModel", model)
    length = _check_sentence_model(encoder.path, encoder.revision) or encoder.max_tokens
    inputs = encoder.tokenizer(clean(texts), truncation=True, max_length=min(length, encoder.max_tokens))

    def mean_pool(output: Any, batch: Any) -> Any:
        mask = batch["attention_mask"].unsqueeze(-1).to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * mask).sum(1) / mask.sum(1)

    return run_batches(encoder, dict(inputs), batch_size, mean_pool)


def _check_sentence_model(path: str, revision: str | None) -> int | None:
    """The model's own maximum length where it is a sentence-transformers model that pools by the mean alone."""

    def read(name: str) -> Any:
        from transformers.utils import cached_file

        found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(found).read_text(encoding="utf-8")) if found else None

    for module in read("modules.json") or []:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind not in MODULES:
            raise UserError(f"model {path}: has a {kind} layer; only mean-pooled hidden states are supported")
        if kind == "Pooling":
            pooling = read(f"{module['path']}/config.json") or {}
            used = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
            used = used or [f"pooling_mode_{pooling.get('pooling_mode', 'mean')}_tokens"]
            if used != ["pooling_mode_mean_tokens"]:
                raise UserError(f"model {path}: pools by {', '.join(used)}; only mean pooling is supported")
    settings = read("sentence_bert_config.json") or {}
    return settings.get("max_seq_length")
