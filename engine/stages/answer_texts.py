"""The texts of sampled answers: without special tokens and thoughts, up to the first of their stop texts.

Token ids come in, texts come out, None where a model did not come to its answer. Knows nothing of how they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.models.chat_template import Thoughts, thoughts

if TYPE_CHECKING:
    from engine.decode.prefix_tree import Sample
    from engine.models.tokenization import Tokenizer
    from engine.stages.sample import SampleJob


def thoughts_of(tokenizer: Tokenizer, job: SampleJob) -> Thoughts | None:
    """How the job's model may think before it answers; None where it does not."""
    from engine.models.tokenization import uses_chat

    return thoughts(tokenizer, job.template_options) if uses_chat(tokenizer, job.template) else None


def texts(
    samples: list[Sample],
    tokenizer: Tokenizer,
    stops: Sequence[tuple[str, ...]],
    thinking: Thoughts | None = None,
) -> list[str | None]:
    """The text of each sample's answer, without special tokens, cut before the first of its stop texts; None where the
    sample ends in its thoughts, before the answer."""
    return answer_texts([sample.token_ids for sample in samples], tokenizer, stops, thinking)


def answer_texts(
    ids: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    stops: Sequence[tuple[str, ...]],
    thinking: Thoughts | None = None,
) -> list[str | None]:
    """`texts` of token ids."""
    if not ids:  # of no answers at all transformers decodes one empty text
        return []
    answers = [list(each) if thinking is None else thinking.answer(each) for each in ids]
    keys = [tuple(each or ()) for each in answers]
    distinct = list(dict.fromkeys(keys))  # many are the same
    decoded = tokenizer.batch_decode([list(each) for each in distinct], skip_special_tokens=True)
    if thinking is not None:
        decoded = [text.lstrip() for text in decoded]
    text_of = dict(zip(distinct, decoded, strict=True))
    return [
        None if answer is None else before_stop(text_of[key], stop)
        for answer, key, stop in zip(answers, keys, stops, strict=True)
    ]


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first of its stop texts."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
