"""Fluency: how sure a gibberish classifier is that a response is clean text; an unlearned model may babble instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.metrics import Failed
from engine.metrics.encoders import identity as identity

DEFAULT_MODEL = "madhurjindal/autonlp-Gibberish-Detector-492513457"


def check(where: str, *, model: str, label: str, **_: object) -> None:
    """UserError unless the model is there and has the label."""
    from engine.metrics.encoders import check_encoder

    check_encoder(where, model, label)


def fluency(
    candidates: Sequence[str],
    references: Sequence[str],
    *,
    model: str = DEFAULT_MODEL,
    label: str = "clean",
    batch_size: int = 64,
) -> list[float | Failed]:
    """Probability that the model gives the label, in [0, 1], for each candidate; references are not read: [candidates].

    model: a classifier, folder or hub name; the default is OpenUnlearning's. A blank candidate scores 0. Candidates are
    cut at their end to the model's length; an output that is not finite is a failure. UserError for a model without
    one label of that name.
    """
    distinct = list(dict.fromkeys(text for text in candidates if text.strip()))
    scores: dict[str, float | Failed] = {}
    if distinct:
        from engine.metrics.encoders import clean, label_index, load_encoder, run_batches

        encoder = load_encoder("AutoModelForSequenceClassification", model)
        index = label_index(encoder.model.config.id2label, label, model)
        inputs = encoder.tokenizer(clean(distinct), truncation=True, max_length=encoder.max_tokens)
        found = run_batches(encoder, dict(inputs), batch_size, lambda output, batch: output.logits.softmax(-1))
        for text, row in zip(distinct, found, strict=True):
            finite = bool(np.isfinite(row).all())
            scores[text] = float(row[index]) if finite else Failed("the model's output is not finite")
    return [scores.get(text, 0.0) for text in candidates]
