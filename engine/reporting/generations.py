"""Generations of any shape that engine/reporting/row_shapes.py reads, one prompt at a time.

A file comes in, prompts with all their samples come out. Rows of one prompt are joined where nothing but the responses
differs. A row without an id is known by its prompt and reference, so that the rows of two files find each other in any
order. Knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.errors import UserError
from engine.jsonl import JsonLines, Reading, json_lines, write_json_lines
from engine.reporting.row_shapes import SHAPES, Fields, fields_of, reference_fields

TWIN = re.compile(r"text-[0-9a-f]{16}-\d+")  # the id of a row that prompt and reference do not tell from another


@dataclasses.dataclass(frozen=True)
class Generations:
    """The responses to one prompt; None: a sample that could not be drawn. `fact` is what exact_fact looks for where it
    is less than the reference; `cluster` names what the prompt shares with others, such as their author."""

    prompt_id: str
    prompt: str
    reference: str
    responses: list[str | None]
    fact: str | None = None
    cluster: str | None = None


@dataclasses.dataclass
class _Prompt:
    """One prompt of a file: where its rows stand, as (line number, place), and how many responses they hold."""

    said: tuple[str | None, ...]
    rows: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    responses: int = 0


def read_generations(path: Path, reading: Reading, references: Path | None = None) -> Iterator[Generations]:
    """The prompts of a generations file in the order of their first rows, one in memory at a time.

    The file is read twice: once to find the rows of each prompt, once for their texts. references: a file of rows with
    reference, and prompt_id or prompt, for generations that hold none. Raises UserError where a file cannot be read, is
    of another kind, or holds two different prompts under one id.
    """
    given = _References.read(references) if references is not None else _References()
    with json_lines(path, reading) as lines:
        found = _index(path, lines, reading, given)
        if not found:
            raise UserError(f"{path}: no row of generations in it ({reading.first_fault}); {SHAPES}")
        reading.rows = len(found)
        for prompt_id, prompt in found.items():
            first: Fields | None = None
            responses: list[str | None] = []
            for number, place in prompt.rows:
                row = given.filled(fields_of(lines.at(place)), number)
                first = first or row
                responses += row.responses
                reading.odd += row.odd
            assert first is not None
            assert first.reference is not None
            yield Generations(prompt_id, first.prompt, first.reference, responses, first.fact, first.cluster)


def write_generations(path: Path, rows: Iterable[Generations]) -> None:
    """Rows in our layout; the file appears whole or not at all."""
    optional = ("fact", "cluster")
    write_json_lines(
        path,
        ({key: each for key, each in dataclasses.asdict(row).items() if key not in optional or each} for row in rows),
    )


def content_id(prompt: str, reference: str, fact: str | None = None) -> str:
    """The id of a row that has none of its own: the same for the same texts, whatever file they stand in."""
    digest = hashlib.sha256(json.dumps([prompt, reference, fact]).encode()).hexdigest()
    return f"text-{digest[:16]}"


def _index(path: Path, lines: JsonLines, reading: Reading, given: _References) -> dict[str, _Prompt]:
    """The prompts by their ids, in the order of their first rows."""
    named: dict[str, _Prompt] = {}
    unnamed: dict[str, _Prompt] = {}
    order: dict[tuple[bool, str], None] = {}
    for line in lines:
        try:
            row = given.filled(fields_of(line.value), line.number)
        except ValueError as error:
            reading.leave_out(line.number, str(error))
            continue
        assert row.reference is not None
        said = (row.prompt, row.reference, row.fact, row.cluster)
        key = row.prompt_id or content_id(row.prompt, row.reference, row.fact)
        prompts = unnamed if row.prompt_id is None else named
        prompt = prompts.setdefault(key, _Prompt(said))
        if prompt.said != said:
            raise UserError(
                f"{path}:{line.number}: {key!r} stands on line {prompt.rows[0][0]} too, where "
                f"{_difference(prompt.said, said)} is another; give each prompt its own prompt_id"
            )
        prompt.rows.append((line.number, line.place))
        prompt.responses += len(row.responses)
        order[row.prompt_id is None, key] = None
    found: dict[str, _Prompt] = {}
    for without_id, key in order:
        prompt = (unnamed if without_id else named)[key]
        if without_id and prompt.responses > len(prompt.rows) > 1:  # each row is a prompt of its own
            for count, place in enumerate(prompt.rows, 1):
                found[f"{key}-{count}"] = _Prompt(prompt.said, [place])
            continue
        reading.joined += len(prompt.rows) - 1
        found[key] = prompt
    return found


def _difference(said: tuple[str | None, ...], now: tuple[str | None, ...]) -> str:
    names = ("the prompt", "the reference", "the fact", "the cluster")
    return next(name for name, one, other in zip(names, said, now, strict=True) if one != other)


@dataclasses.dataclass(frozen=True)
class _References:
    """References by prompt id, by prompt, and by line, for rows that hold none."""

    path: Path | None = None
    by_id: dict[str, Fields] = dataclasses.field(default_factory=dict)
    by_prompt: dict[str, Fields] = dataclasses.field(default_factory=dict)
    by_line: dict[int, Fields] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _References:
        """Every row of a file of references. UserError for a row that is none and for an id that stands twice."""
        found, reading, twice = cls(path), Reading(), set[str]()
        with json_lines(path, reading) as lines:
            for line in lines:
                try:
                    row = reference_fields(line.value)
                except ValueError as error:
                    raise UserError(
                        f"{path}:{line.number}: {error}; expected a row with reference and prompt"
                    ) from error
                if row.prompt_id in found.by_id:
                    raise UserError(f"{path}:{line.number}: prompt_id {row.prompt_id!r} stands there twice")
                found.by_line[line.number] = row
                if row.prompt_id is not None:
                    found.by_id[row.prompt_id] = row
                if found.by_prompt.setdefault(row.prompt, row) is not row:
                    twice.add(row.prompt)
        if not found.by_line or reading.malformed:
            raise UserError(f"{path}: not a file of references ({reading.first_fault})")
        for prompt in twice:
            del found.by_prompt[prompt]
        return found

    def filled(self, row: Fields, number: int) -> Fields:
        """The row with its reference, and what else it lacks; by its id, else its prompt, else its line. ValueError
        where there is none."""
        if row.reference is not None:
            return row
        if self.path is None:
            raise ValueError("no reference (nor ground_truth) of text; --references FILE.jsonl can give it")
        by_line = self.by_line.get(number) if row.prompt_id is None and not row.prompt else None
        found = self.by_id.get(row.prompt_id or "") or self.by_prompt.get(row.prompt) or by_line
        if found is None:
            raise ValueError(f"no reference for it in {self.path.name}")
        return dataclasses.replace(
            row,
            prompt_id=row.prompt_id or found.prompt_id,
            prompt=row.prompt or found.prompt,
            reference=found.reference,
            fact=row.fact or found.fact,
            cluster=row.cluster or found.cluster,
        )
