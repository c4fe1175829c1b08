"""Generations in JSON lines, in this form or as the paper's code released them, read one row at a time.

    {"prompt_id": str, "prompt": str, "reference": str, "responses": [str, ...]}
    {"prompt": str, "ground_truth": str, "responses": [{"response": str}, ...]}      (the paper's; no ids)

Knows nothing of metrics. Malformed lines are counted and named, never silently dropped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UserError

NAMED = 20  # malformed lines that are remembered one by one


@dataclasses.dataclass(frozen=True)
class Generations:
    """The responses to one prompt. `reference` is the fact where the row has one."""

    prompt_id: str
    reference: str
    responses: list[str]


@dataclasses.dataclass
class Reading:
    """How a reading went: rows read, and malformed lines as (line number, reason)."""

    rows: int = 0
    malformed: int = 0
    examples: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    bytes_read: int = 0


def read_generations(path: Path, reading: Reading) -> Iterator[Generations]:
    """Rows of a generations file, in order, in constant memory; `reading` is kept up to date.

    A row without prompt_id is known by its line number: the same prompt may stand in several rows. Raises UserError
    where the file cannot be read.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    seen: set[str] = set()
    with stream:
        for number, line in enumerate(stream, 1):
            reading.bytes_read += len(line)
            if not line.strip():
                continue
            try:
                row = _row(json.loads(line), number)
                if row.prompt_id in seen:
                    raise ValueError(f"prompt_id {row.prompt_id!r} stands in an earlier line")
            except (ValueError, RecursionError) as error:
                reading.malformed += 1
                if len(reading.examples) < NAMED:
                    reading.examples.append((number, str(error)[:120]))
                continue
            seen.add(row.prompt_id)
            reading.rows += 1
            yield row


def _row(raw: Any, number: int) -> Generations:
    """One parsed line as Generations. ValueError says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    reference = next((raw[key] for key in ("fact", "reference", "ground_truth") if raw.get(key) is not None), None)
    if not isinstance(reference, str):
        raise ValueError("no reference (nor ground_truth) of text")
    responses = raw.get("responses")
    if not isinstance(responses, list) or not responses:
        raise ValueError("responses must be a list of at least one")
    texts: list[Any] = [each.get("response") if isinstance(each, dict) else each for each in responses]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("every response must be text")
    return Generations(str(raw.get("prompt_id", f"line-{number}")), reference, texts)
