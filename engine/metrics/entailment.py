"""Entailment: whether a response says what the reference says, by an NLI pair classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.metrics import Failed
from engine.metrics.encoders import identity as identity

DEFAULT_MODEL = "sileod/deberta-v3-base-tasksource-nli"


def check(where: str, *, model: str, **_: object) -> None:
    """UserError unless the model is there and has the label."""
    from engine.metrics.encoders import check_encoder

    check_encoder(where, model, "entailment")


def entailment(
    candidates: Sequence[str],
    references: Sequence[str],
    *,
    model: str = DEFAULT_MODEL,
    rouge_filter: float | None = None,
    batch_size: int = 64,
) -> list[float | Failed]:
    """1.0 where the model's label for (premise = candidate, hypothesis = reference) is entailment, else 0.0: [pairs].

    model: a folder or hub name. rouge_filter: pairs whose ROUGE-L recall is below it score 0 unseen (the paper's ES:
    0.1; None: no filter). A blank candidate entails nothing. Candidates are cut at their end to the model's length; a
    reference that does not fit, one that the model's vocabulary lacks, and an output that is not finite are failures.
    Raises ValueError for unequal lengths, UserError for a model without one label "entailment". Source: arXiv
    2511.04934, entailment score.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} references: they must be pairs")
    pairs = list(zip(candidates, references, strict=True))
    distinct = list(dict.fromkeys(pairs))
    scores: dict[tuple[str, str], float | Failed] = dict.fromkeys(distinct, 0.0)
    asked = [pair for pair in distinct if pair[0].strip()]
    if rouge_filter is not None:
        from engine.metrics.rouge import rouge_l

        recall = rouge_l([pair[0] for pair in asked], [pair[1] for pair in asked]).recall
        asked = [pair for pair, value in zip(asked, recall, strict=True) if value >= rouge_filter]
    if asked:
        scores.update(zip(asked, _classify(asked, model, batch_size), strict=True))
    return [scores[pair] for pair in pairs]


def _classify(pairs: list[tuple[str, str]], model: str, batch_size: int) -> list[float | Failed]:
    from engine.metrics.encoders import UNREAD, clean, label_index, load_encoder, run_batches, unread

    encoder = load_encoder("AutoModelForSequenceClassification", model)
    label = label_index(encoder.model.config.id2label, "entailment", model)
    premises, hypotheses = clean([pair[0] for pair in pairs]), clean([pair[1] for pair in pairs])
    room = encoder.max_tokens - encoder.tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in encoder.tokenizer(hypotheses, add_special_tokens=False)["input_ids"]]
    dark = unread(model, "AutoModelForSequenceClassification", [pair[1] for pair in pairs])
    fits = [index for index, length in enumerate(lengths) if length < room and pairs[index][1] not in dark]
    scores: list[float | Failed] = [
        Failed(UNREAD if reference in dark else "the reference is longer than the model takes")
        for _, reference in pairs
    ]
    if not fits:
        return scores
    inputs = encoder.tokenizer(
        [premises[i] for i in fits],
        [hypotheses[i] for i in fits],
        truncation="only_first",
        max_length=encoder.max_tokens,
    )
    logits = run_batches(encoder, dict(inputs), batch_size, lambda output, batch: output.logits)
    for index, row in zip(fits, logits, strict=True):
        finite = bool(np.isfinite(row).all())
        scores[index] = float(row.argmax() == label) if finite else Failed("the model's output is not finite")
    return scores
