"""Generations in JSON lines, in our layout or as the paper's code released them, one row a prompt at a time.

    {"prompt_id": str, "prompt": str, "reference": str, "responses": [str or null, ...]}      optional: "fact": str
    {"prompt": str, "ground_truth": str, "responses": [{"response": str}, ...]}      (the paper's; no ids)

A null response is a sample that could not be drawn. Malformed lines are counted and named, never silently dropped.
Knows nothing of metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from engine.errors import UserError

NAMED = 20  # malformed lines that are remembered one by one
LONGEST_LINE = 2**27  # bytes of a row; a whole file on one line must not fill the memory


@dataclasses.dataclass(frozen=True)
class Generations:
    """The responses to one prompt. `fact` is what exact_fact looks for where it is less than the reference."""

    prompt_id: str
    prompt: str
    reference: str
    responses: list[str | None]
    fact: str | None = None


@dataclasses.dataclass
class Reading:
    """How a reading went: rows and bytes read, malformed lines, and the first of them as (line number, reason)."""

    rows: int = 0
    malformed: int = 0
    examples: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    bytes_read: int = 0


def read_generations(path: Path, reading: Reading) -> Iterator[Generations]:
    """Rows of a generations file, in order, one in memory at a time; `reading` is kept up to date.

    A row without prompt_id is known by its line number: the same prompt may stand in several rows. Raises UserError
    where the file cannot be read.
    """
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(_lines(stream, reading), 1):
                if line is not None and not line.strip():
                    continue
                try:
                    row = _row(_parse(line), number)
                    if row.prompt_id in lines:
                        raise ValueError(f"prompt_id {row.prompt_id!r} stands on line {lines[row.prompt_id]} too")
                except ValueError as error:
                    reading.malformed += 1
                    if len(reading.examples) < NAMED:
                        reading.examples.append((number, str(error)[:160]))
                    continue
                lines[row.prompt_id] = number
                reading.rows += 1
                yield row
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def write_generations(path: Path, rows: Iterable[Generations]) -> None:
    """Rows in our layout; the file appears whole or not at all."""
    with atomic_file(path) as stream:
        for row in rows:
            fields = {name: value for name, value in dataclasses.asdict(row).items() if name != "fact" or value}
            stream.write(json.dumps(fields) + "\n")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write that replaces `path` when the block ends well and leaves nothing otherwise.

    Raises UserError where `path` cannot be written or is no plain file.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a plain file; choose another name to write to")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        stream = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lines(stream: IO[bytes], reading: Reading) -> Iterator[bytes | None]:
    """The file's lines; None stands for one longer than LONGEST_LINE, which is never held in memory."""
    while line := stream.readline(LONGEST_LINE):
        reading.bytes_read += len(line)
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            reading.bytes_read += len(rest)
        reading.bytes_read += len(rest)
        yield None


def _parse(line: bytes | None) -> Any:
    if line is None:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB; expected one row a line")
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (too deeply nested)") from error


def _row(raw: Any, number: int) -> Generations:
    """One parsed line as Generations. ValueError says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    reference, fact = raw.get("reference", raw.get("ground_truth")), raw.get("fact")
    if not isinstance(reference, str):
        raise ValueError("no reference (nor ground_truth) of text")
    for text in (reference, fact):
        if text is not None and not (isinstance(text, str) and any(character.isalnum() for character in text)):
            raise ValueError(f"a reference or fact must hold a word, found {text!r}")
    responses = raw.get("responses")
    if not isinstance(responses, list) or not responses:
        raise ValueError("responses must be a list of at least one")
    texts = [_response(each) for each in responses]
    prompt_id, prompt = raw.get("prompt_id"), raw.get("prompt", "")
    if not isinstance(prompt_id, str | int | None) or not isinstance(prompt, str):
        raise ValueError("prompt_id and prompt must be text")
    return Generations(f"line-{number}" if prompt_id is None else str(prompt_id), prompt, reference, texts, fact)


def _response(value: Any) -> str | None:
    if isinstance(value, dict):
        if "response" not in value:
            raise ValueError(f"a response without the key 'response', found {', '.join(value) or 'nothing'}")
        value = value["response"]
    if not isinstance(value, str | None):
        raise ValueError(f"every response must be text or null, found {type(value).__name__}")
    return value
