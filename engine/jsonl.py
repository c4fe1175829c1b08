"""JSON lines, read and written: the one place that knows how a file of rows is encoded.

A path comes in, parsed lines with their numbers come out. UTF-8 with or without a byte order mark, UTF-16 and UTF-32
are read alike; lines that are no JSON are counted and named, never silently dropped. Knows nothing of what rows hold.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import json
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from engine.errors import UserError, one_line
from engine.fingerprint import refuse_pointer

JsonValue = Any  # as the json library types what it reads: checked where it is used
JsonObject = dict[str, JsonValue]
NAMED = 20  # malformed lines that are remembered one by one
LONGEST_LINE = 2**27  # bytes of a row; a whole file on one line must not fill the memory
LARGEST_VALUE = 2**28  # bytes of a file that is looked at as one JSON value, to say what it is
MARKS = (  # the longest first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass
class Reading:
    """How a reading went: rows, malformed lines, and the first of them as (line number, reason).

    joined: rows that were added to an earlier row of the same prompt. odd: responses that are no text, by what they
    are; each is a sample that failed. bytes_read: of the rows handed on so far.
    """

    rows: int = 0
    malformed: int = 0
    examples: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    joined: int = 0
    odd: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes_read: int = 0

    def leave_out(self, number: int, reason: str) -> None:
        """Count a line that could not be read, and remember it while there are few."""
        self.malformed += 1
        if len(self.examples) < NAMED:
            self.examples.append((number, reason[:160]))

    @property
    def first_fault(self) -> str:
        """What stands in the way where no row could be read."""
        return f"line {self.examples[0][0]}: {self.examples[0][1]}" if self.examples else "it is empty"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line that is JSON: its number from 1, where it begins in the file, and its value."""

    number: int
    place: int
    value: JsonValue


class JsonLines:
    """The lines of an open file: iterate over all, then read some again at their places."""

    def __init__(self, path: Path, stream: IO[bytes], reading: Reading) -> None:
        self.path, self.stream, self.reading = path, stream, reading

    def __iter__(self) -> Iterator[Line]:
        """Every line that is JSON, in order; the others are counted in `reading`. UserError where the file as a whole
        is something else."""
        for number, place, line in self._lines():
            if line is not None and not line.strip():
                continue
            try:
                yield Line(number, place, _parse(line))
            except ValueError as error:
                if self.reading.malformed == 0:
                    self._refuse_other_files(line)
                self.reading.leave_out(number, str(error))

    def at(self, place: int) -> JsonValue:
        """The value of the line that begins at `place`; not while iterating."""
        if self.stream.tell() != place:
            self.stream.seek(place)
        line = self.stream.readline()
        self.reading.bytes_read += len(line)
        return _parse(line)

    def _lines(self) -> Iterator[tuple[int, int, bytes | None]]:
        """(number, place, line); None stands for one longer than LONGEST_LINE, which is never held in memory."""
        self.stream.seek(0)
        number, place = 0, 0
        if self.stream.read(3) == codecs.BOM_UTF8:
            place = 3
        self.stream.seek(place)
        while line := self.stream.readline(LONGEST_LINE):
            number += 1
            length, whole = len(line), len(line) < LONGEST_LINE or line.endswith(b"\n")
            while not whole:
                rest = self.stream.readline(LONGEST_LINE)
                length += len(rest)
                whole = not rest or rest.endswith(b"\n")
                line = b""
            yield number, place, line or None
            place += length

    def _refuse_other_files(self, line: bytes | None) -> None:
        """UserError where the file is one JSON value over many lines, or a pointer to a file kept elsewhere."""
        if line is not None and self.path.is_file():
            refuse_pointer(self.path, str(self.path))
        if line is None or line.lstrip()[:1] not in (b"[", b"{"):
            return
        before = self.stream.tell()
        self.stream.seek(0, os.SEEK_END)
        size = self.stream.tell()
        self.stream.seek(0)
        try:
            value = json.loads(self.stream.read().decode("utf-8-sig")) if size <= LARGEST_VALUE else None
        except (ValueError, RecursionError):
            value = None
        self.stream.seek(before)
        if value is not None:
            raise UserError(f"{self.path}: {kind_of_json(value, self.path)}")


@contextlib.contextmanager
def json_lines(path: Path, reading: Reading) -> Iterator[JsonLines]:
    """The lines of the file at `path`; `reading` is kept up to date. UserError where it cannot be read."""
    try:
        if path.is_file():  # no pipe, which is read once
            refuse_pointer(path, str(path))
        with path.open("rb") as raw, contextlib.ExitStack() as stack:
            yield JsonLines(path, _as_utf8(path, raw, stack), reading)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def kind_of_json(value: JsonValue, path: Path) -> str:
    """What a file is that holds one JSON value where rows were expected, and what to do with it."""
    quoted = shlex.quote(str(path))
    if isinstance(value, list):
        return (
            "is one JSON array; expected JSON lines, one row a line: "
            f"`jq -c '.[]' {quoted} > ROWS.jsonl` makes them of it"
        )
    if isinstance(value, dict) and any(isinstance(each, dict) and "agg_value" in each for each in value.values()):
        return f"is an evaluation log, not JSON lines; `leakatk import {quoted}` reads it"
    if isinstance(value, dict) and any("eval_" in str(key) and str(key).endswith(".json") for key in value):
        return f"is TOFU's evaluation log, not JSON lines; `leakatk import {quoted}` reads it"
    keys = one_line(", ".join(map(str, list(value)[:6]))) if isinstance(value, dict) else type(value).__name__
    return f"is one JSON value over many lines ({keys}); expected JSON lines, one row a line"


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


def write_json_lines(path: Path, rows: Iterable[JsonObject]) -> None:
    """One row a line; the file appears whole or not at all."""
    with atomic_file(path) as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")


def _as_utf8(path: Path, raw: IO[bytes], stack: contextlib.ExitStack) -> IO[bytes]:
    """`raw` as UTF-8 that can be read more than once: itself, or a temporary copy of a pipe or of another encoding."""
    if not raw.seekable():
        copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(raw, copy)
        copy.seek(0)
        raw = copy
    encoding = _encoding(raw.read(8))
    raw.seek(0)
    if encoding is None:
        return raw
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    try:
        text = io.TextIOWrapper(raw, encoding=encoding, newline="")
        while piece := text.read(2**20):
            copy.write(piece.encode())
    except UnicodeError as error:
        raise UserError(f"{path}: begins as {encoding.upper()} but is not; write it as UTF-8") from error
    return copy


def _encoding(start: bytes) -> str | None:
    """The encoding that a file's first bytes tell, None for UTF-8: by its mark, or by where its zeros stand."""
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    zeros = [index for index, byte in enumerate(start[:4]) if byte == 0]
    return {(1, 3): "utf-16-le", (0, 2): "utf-16-be", (1, 2, 3): "utf-32-le", (0, 1, 2): "utf-32-be"}.get(tuple(zeros))


def _parse(line: bytes | None) -> JsonValue:
    if line is None:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB; expected one row a line")
    try:
        return json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (too deeply nested)") from error
