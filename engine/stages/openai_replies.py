"""What a reply of an OpenAI-compatible server holds: an Answer a sample, its text without thoughts.

A parsed reply comes in, Answers come out. Knows nothing of how it was asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.models.openai_client import parted

FILTERED = "content filter"
THOUGHTS_ALONE = "thoughts without an answer"  # within max_new_tokens
OF_THE_MODEL = (FILTERED, THOUGHTS_ALONE)  # failures that come again however often one asks


class Answer(NamedTuple):
    """One sample: its text, why it ended, and its tokens where the server counts them; or why it is missing, and the
    thoughts that it ended in."""

    text: str | None = None
    finish: str | None = None
    tokens: int | None = None
    failure: str | None = None
    thought: str | None = None


def read_reply(reply: Any, count: int, chat: bool) -> list[Answer]:
    """The choices of a reply. Its tokens are counted together: each of several gets its share, the sum is right."""
    try:
        choices = list(reply.choices)[:count]
        tokens = getattr(reply.usage, "completion_tokens", None)
        shares = [None if tokens is None else (tokens + index) // len(choices) for index in range(len(choices))]
        answers = [_answer(choice, share, chat) for choice, share in zip(choices, shares, strict=True)]
    except (AttributeError, TypeError) as error:
        raise ValueError("not a reply of this protocol") from error
    if not answers:
        raise ValueError("no choice in the reply")
    return answers


def _answer(choice: Any, tokens: int | None, chat: bool) -> Answer:
    end, text, thought = str(choice.finish_reason), None, None
    if chat:
        text, thought = parted(choice.message)
    else:
        text = choice.text
    if end == "content_filter":
        return Answer(failure=FILTERED)
    if text is None and thought:
        return Answer(failure=THOUGHTS_ALONE, thought=thought)
    if not isinstance(text, str):
        return Answer(failure="no text in the reply")
    return Answer(text, "length" if end == "length" else "stop", tokens)
