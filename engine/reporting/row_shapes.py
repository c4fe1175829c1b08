"""The shapes in which people keep generations: one parsed row comes in, its fields come out.

    {"prompt_id": str, "prompt": str, "reference": str, "responses": [str or null, ...]}      ours
    {"prompt": str, "ground_truth": str, "responses": [{"response": str}, ...]}               the paper's
    {"prompt": str, "completions": [str, ...]}                                                many a sampler's
    {"prompt": str, "outputs": [{"text": str}, ...]}                                          vLLM's request output
    {"custom_id": str, "response": {"body": {"choices": [...]}}}                              OpenAI's, vLLM's batches
    [str, ...]                                                                                the responses alone

A row without a reference takes it from a file of references. Knows nothing of files or of other rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

from engine.jsonl import JsonValue

PROMPT_KEYS = ("prompt", "question", "input")
REFERENCE_KEYS = ("reference", "ground_truth", "answer", "target")
MANY_KEYS = ("responses", "completions", "generations", "outputs", "choices")
ONE_KEYS = ("response", "completion", "generation", "output", "generated_text")
TEXT_KEYS = ("response", "text", "completion", "generated_text", "content")
EXAMPLE = '{"prompt_id": "1", "prompt": "Who?", "reference": "Ada", "responses": ["Ada", "Bob"]}'
SHAPES = (
    f"expected rows such as {EXAMPLE}; read too: ground_truth for reference, responses as objects, completions, vLLM's "
    "outputs, batch output lines (custom_id) and plain lists of texts, the last two with --references FILE.jsonl"
)


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a row says: None where it says nothing. odd: its responses that are no text, by what they are."""

    prompt_id: str | None
    prompt: str
    reference: str | None
    responses: list[str | None]
    fact: str | None
    cluster: str | None
    odd: Counter[str]


def fields_of(raw: JsonValue) -> Fields:
    """The fields of one parsed row. ValueError says what is wrong with it."""
    if isinstance(raw, list):
        if not raw:
            raise ValueError("expected an object, found an empty list")
        if isinstance(raw[0], dict) and {*PROMPT_KEYS, *REFERENCE_KEYS} & set(raw[0]):
            raise ValueError("a JSON array of rows; expected one row a line: `jq -c '.[]' FILE > ROWS.jsonl`")
        raw = {"responses": raw}
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    given = _responses(raw)
    odd: Counter[str] = Counter()
    texts = [_text(each, odd) for each in given]
    foreign = [each for each in given if isinstance(each, dict) and not {*TEXT_KEYS, "message"} & set(each)]
    if len(foreign) == len(given):
        raise ValueError(f"a response without the key 'response', found {', '.join(foreign[0]) or 'nothing'}")
    odd["a response is an object without its text"] += len(foreign)
    return Fields(
        prompt_id=_label(raw, ("prompt_id", "custom_id") if _from_server(raw) else ("prompt_id", "custom_id", "id")),
        prompt=_prompt(raw),
        reference=_word(raw, REFERENCE_KEYS),
        responses=texts,
        fact=_word(raw, ("fact",)),
        cluster=_label(raw, ("cluster",)),
        odd=+odd,
    )


def reference_fields(raw: JsonValue) -> Fields:
    """The fields of one row of a file of references, which has no responses. ValueError says what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    found = fields_of(
        {**{key: each for key, each in raw.items() if key not in MANY_KEYS + ONE_KEYS}, "responses": [""]}
    )
    if found.reference is None:
        raise ValueError(f"no reference of text; found {', '.join(map(str, raw)) or 'nothing'}")
    return found


def _from_server(raw: Mapping[str, JsonValue]) -> bool:
    """Whether `id` is one that a server made up for the request."""
    return "custom_id" in raw or "choices" in raw or "outputs" in raw


def _responses(raw: Mapping[str, JsonValue]) -> list[JsonValue]:
    if "custom_id" in raw and isinstance(raw.get("response"), dict | None):
        return _batch_responses(raw)
    for key in MANY_KEYS:
        if key in raw:
            if not isinstance(raw[key], list) or not raw[key]:
                raise ValueError(f"{key} must be a list of at least one")
            return list(raw[key])
    for key in ONE_KEYS:
        if key in raw:
            return raw[key] if isinstance(raw[key], list) and raw[key] else [raw[key]]
    raise ValueError(f"no responses; found {', '.join(map(str, raw)) or 'nothing'}")


def _batch_responses(raw: Mapping[str, JsonValue]) -> list[JsonValue]:
    """The choices of one line of a batch's output; a request that failed is one sample without a response."""
    answer = raw.get("response") or {}
    body = answer.get("body")
    choices = body.get("choices") if isinstance(body, dict) else None
    if isinstance(choices, list) and choices:
        return list(choices)
    if raw.get("error") or answer.get("status_code", 200) != 200 or raw.get("response") is None:
        return [None]
    raise ValueError("a batch line whose response.body has no choices")


def _text(value: JsonValue, odd: Counter[str]) -> str | None:
    """A response as text; None, noted in `odd`, where it is something else."""
    if isinstance(value, dict):
        value = _inner(value)
    if isinstance(value, str) or value is None:
        return value
    nan = isinstance(value, float) and math.isnan(value)
    odd[f"a response is {'NaN' if nan else f'no text but {type(value).__name__}'}"] += 1
    return None


def _inner(value: Mapping[str, JsonValue]) -> JsonValue:
    """What an object holds as the text of a response; None where no key tells."""
    if isinstance(value.get("message"), dict):
        value = value["message"]
    found = next((value[key] for key in TEXT_KEYS if key in value), None)
    if isinstance(found, list):  # a message in parts
        found = "".join(str(each.get("text", "")) for each in found if isinstance(each, dict))
    return found


def _prompt(raw: Mapping[str, JsonValue]) -> str:
    value = next((raw[key] for key in PROMPT_KEYS if raw.get(key) is not None), "")
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):  # a chat: its last turn
        value = value[-1].get("content", "")
    if not isinstance(value, str):
        raise ValueError("prompt_id and prompt must be text")
    return value


def _word(raw: Mapping[str, JsonValue], keys: tuple[str, ...]) -> str | None:
    """The text at the first of these keys that is there; it must hold a word."""
    value = next((raw[key] for key in keys if raw.get(key) is not None), None)
    if value is not None and not (isinstance(value, str) and any(character.isalnum() for character in value)):
        raise ValueError(f"a reference or fact must hold a word, found {value!r}")
    return value


def _label(raw: Mapping[str, JsonValue], keys: tuple[str, ...]) -> str | None:
    value = next((raw[key] for key in keys if raw.get(key) is not None), None)
    if not isinstance(value, str | int | None):
        raise ValueError(f"{keys[0]} must be text, found {type(value).__name__}")
    return None if value is None else str(value)
