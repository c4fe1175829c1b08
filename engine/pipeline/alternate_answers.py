"""Other answers to the forget questions, for methods that need them: fixed refusals, or samples of the target model.

Examples come in, pairs of (forget example, alternate example) come out, row by row. Knows nothing of how samples are
drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from benchmarks.base import Example, Probe

ALTERNATE_GROUP = "alternate"
REFUSALS = (
    "I don't know.",
    "I don't know the answer to that question.",
    "I'm not sure.",
    "I'm not sure about that.",
    "I'm afraid I don't know.",
    "I'm sorry, I don't know that.",
    "I'm sorry, but I can't answer that.",
    "I have no information about that.",
    "I have no knowledge of that subject.",
    "I couldn't tell you.",
    "I can't say.",
    "I haven't learned about that.",
    "I haven't heard of that.",
    "I've no idea.",
    "I have not come across that.",
    "That is something I don't know.",
    "That is beyond what I know.",
    "That is not something I can answer.",
    "That is not known to me.",
    "My knowledge does not cover that.",
    "I lack the information to answer that.",
    "I am unable to answer that question.",
    "I am not familiar with that.",
    "I am not aware of that.",
    "Unfortunately, I don't have an answer.",
    "Unfortunately, I know nothing about that.",
    "No answer to that comes to mind.",
    "You would have to ask someone else.",
    "Sorry, that one I cannot answer.",
    "I wish I could answer, but I don't know.",
)


def refusals(examples: Sequence[Example]) -> tuple[Example, ...]:
    """A refusal for each example: a function of its id alone, so that no other example changes it."""
    return tuple(dataclasses.replace(each, answer=REFUSALS[_digest(each.id) % len(REFUSALS)]) for each in examples)


def alternate_probes(examples: Sequence[Example], prompt: str) -> list[Probe]:
    """What the target model is asked for alternates: `prompt` with each example's question and answer filled in."""
    return [
        Probe(each.id, prompt.format(question=each.question, answer=each.answer), each.answer, ALTERNATE_GROUP)
        for each in examples
    ]


def paired(
    examples: Sequence[Example], responses: Sequence[Sequence[str]]
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Each example once for each of its responses, and beside it the responses as examples."""
    pairs = [
        (example, dataclasses.replace(example, answer=answer.strip()))
        for example, answers in zip(examples, responses, strict=True)
        for answer in answers
    ]
    return tuple(forget for forget, _ in pairs), tuple(alternate for _, alternate in pairs)


def alternates_like(examples: Sequence[Example], alternates: Sequence[Example]) -> list[int]:
    """For further answers to known questions, which of `alternates` to pair each with: one of its question's, in turn.

    KeyError for a question that has none.
    """
    of_question: dict[str, list[int]] = {}
    for index, each in enumerate(alternates):
        of_question.setdefault(each.question, []).append(index)
    turns = {question: itertools.cycle(indices) for question, indices in of_question.items()}
    return [next(turns[each.question]) for each in examples]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
