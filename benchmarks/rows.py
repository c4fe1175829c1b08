"""Rows of a user's own data: JSON lines, JSON, CSV, parquet, text files, a folder of any of these, a hub data set.

A Source comes in; Rows come out, each with the place that an error names. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.hub import data_version, load_table
from engine.errors import UserError, one_line
from engine.fingerprint import file_digest, refuse_pointer, visible_files
from engine.jsonl import Reading, json_lines

JSON_LINES, TABLES, TEXTS = (".jsonl", ".ndjson"), (".csv", ".tsv", ".parquet"), (".txt", ".md")
READ = "read are .jsonl, .json, .csv, .tsv, .parquet, .txt and .md files, a folder of these, or a hub name org/data"


class Source(BaseModel):
    """path: a file, a folder, or a hub name with its config, split and revision; columns: our name: theirs, where they
    differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    columns: dict[str, str] = {}
    config: str | None = None
    split: str = "train"
    revision: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: its values by column, and where it stands, for errors."""

    where: str
    values: Mapping[str, Any]


def read_rows(source: Source, key: str, columns: Mapping[str, str]) -> list[Row]:
    """All rows of a source in order, columns renamed, cells without a value left out.

    key: its name in errors. columns: our name: theirs, of columns that it may have, beside those that it names itself.

    Raises UserError for what cannot be read, a line that is no row, a renamed column that no row has, and no row.
    """
    rows = list(_rows(source, key))
    if not rows:
        raise UserError(f"{key} {source.path}: no row in it; {READ}")
    there = list(dict.fromkeys(column for row in rows for column in row.values))
    for ours, theirs in source.columns.items():
        if theirs not in there:
            raise UserError(f"{key} {source.path}: columns.{ours}: no column {theirs!r}; found {', '.join(there)}")
    names = {theirs: ours for ours, theirs in (*columns.items(), *source.columns.items())}
    return [
        Row(row.where, {names.get(column, column): value for column, value in row.values.items() if value is not None})
        for row in rows
    ]


def source_version(source: Source, key: str) -> str:
    """What a source holds: the commit on the hub, or a digest of its bytes."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return f"sha256 {file_digest(path)[:40]}"
    _refuse_missing(path, source, key)
    return data_version(source.path, source.revision)


def _rows(source: Source, key: str) -> Iterator[Row]:
    path = Path(source.path).expanduser()
    try:
        if path.is_file():
            yield from _file_rows(path, key)
        elif path.is_dir():
            yield from _folder_rows(path, key)
        else:
            _refuse_missing(path, source, key)
            table = load_table(source.path, source.config, source.split, source.revision, key)
            for number, values in enumerate(table):
                yield Row(f"{key} {source.path}: row {number}", dict(values))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is not readable as UTF-8 text ({error})"
        raise UserError(f"{key} {source.path}: {one_line(str(reason or error))}") from error


def _refuse_missing(path: Path, source: Source, key: str) -> None:
    """UserError where `path` is meant as a file or folder and is not there."""
    local = source.path.startswith((".", "/", "~")) or source.path.count("/") != 1 or path.suffix in _suffixes()
    if local and not path.exists():
        raise UserError(f"{key} {source.path}: there is no such file or folder; {READ}")


def _suffixes() -> tuple[str, ...]:
    return (*JSON_LINES, *TABLES, *TEXTS, ".json")


def _folder_rows(folder: Path, key: str) -> Iterator[Row]:
    """The rows of a folder's tables, or, where there is none, its texts, a file each."""
    files = visible_files(folder)
    tables = [path for path in files if path.suffix in (*JSON_LINES, *TABLES)]
    for path in tables or [path for path in files if path.suffix in TEXTS]:
        for row in _file_rows(path, key):
            name = path.relative_to(folder).as_posix()
            yield row if tables else Row(row.where, {**row.values, "id": name})


def _file_rows(path: Path, key: str) -> Iterator[Row]:
    refuse_pointer(path, key)
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        yield from _json_lines(path, key)
    elif suffix == ".json":
        yield from _json(path, key)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(path, key, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        yield from _parquet(path, key)
    elif suffix in TEXTS:
        yield Row(f"{key} {path}", {"id": path.name, "text": path.read_text(encoding="utf-8-sig")})
    else:
        raise UserError(f"{key} {path}: files of this kind are not read; {READ}")


def _json_lines(path: Path, key: str) -> Iterator[Row]:
    reading = Reading()
    with json_lines(path, reading) as lines:
        for line in lines:
            if not isinstance(line.value, dict):
                raise UserError(f"{key} {path}:{line.number}: expected an object, found {type(line.value).__name__}")
            yield Row(f"{key} {path}:{line.number}", line.value)
    if reading.malformed:  # nothing of what is to be forgotten may be lost
        raise UserError(f"{key} {path}: {reading.malformed} lines that cannot be read; {reading.first_fault}")


def _json(path: Path, key: str) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key} {path}: not JSON ({one_line(str(error))})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{key} {path}: expected a JSON array of objects, one each row")
    for number, values in enumerate(rows, 1):
        yield Row(f"{key} {path}: row {number}", values)


def _csv(path: Path, key: str, delimiter: str) -> Iterator[Row]:
    """Every cell is text, whatever it looks like; an empty one is no value."""
    text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    for values in reader:
        if None in values or None in values.values():
            raise UserError(
                f"{key} {path}:{reader.line_num}: expected {len(reader.fieldnames or [])} cells as the header"
            )
        yield Row(f"{key} {path}:{reader.line_num}", {name: cell or None for name, cell in values.items()})


def _parquet(path: Path, key: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{key} {path}: not parquet ({one_line(str(error))})") from error
    for number, values in enumerate(rows):
        yield Row(f"{key} {path}: row {number}", values)
