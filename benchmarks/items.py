"""Rows of a user's files as items: a question with its answer, or a text, and what may stand beside them.

A row comes in; an Item, or the value of one of its columns, comes out. A bad row is a UserError of one line that says
where it stands. Knows nothing of how items are asked.
"""

from __future__ import annotations

import dataclasses
import json

from benchmarks.base import Example
from benchmarks.rows import Row
from engine.errors import UserError


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of a forget, retain or utility set; `question` is empty for running text."""

    id: str
    question: str
    answer: str
    cluster: str
    fact: str | None
    paraphrases: tuple[str, ...]
    wrong_answers: tuple[str, ...]

    @property
    def example(self) -> Example:
        return Example(self.id, self.question, self.answer)


def item_of(row: Row, name: str, number: int) -> Item:
    """A row of the set `name` as an Item. UserError where it is neither a question with its answer nor a text."""
    values = row.values
    if "question" in values or "answer" in values:
        question, answer = text_of(row, "question"), text_of(row, "answer")
    elif "text" in values:
        question, answer = "", text_of(row, "text")
    else:
        raise UserError(
            f"{row.where}: expected question and answer, or text; found {', '.join(map(str, values)) or 'nothing'}; "
            "benchmark.columns names yours"
        )
    label = f"{name}/{label_of(row, 'id') or number}"
    return Item(
        id=label,
        question=question,
        answer=answer,
        cluster=label_of(row, "cluster") or label,
        fact=text_of(row, "fact") if "fact" in values else None,
        paraphrases=_texts(row, "paraphrases"),
        wrong_answers=_texts(row, "wrong_answers"),
    )


def text_of(row: Row, column: str) -> str:
    """The text in a column; it must hold a word."""
    value = row.values.get(column)
    if value is None:
        raise UserError(
            f"{row.where}: has no {column}; found {', '.join(map(str, row.values)) or 'nothing'}; benchmark.columns "
            "names yours"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not any(map(str.isalnum, value)):
        raise UserError(f"{row.where}: {column} must be text that holds a word, found {value!r:.60}")
    return value


def _texts(row: Row, column: str) -> tuple[str, ...]:
    """The texts in a column: a list, or, in a table of cells, one text or a list in JSON."""
    value = row.values.get(column, [])
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{row.where}: {column} must be a list of texts, found {value!r:.60}") from error
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{row.where}: {column} must be a list of texts, found {value!r:.60}")
    return tuple(texts)


def label_of(row: Row, column: str) -> str | None:
    value = row.values.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or str(value).strip() == "":
        raise UserError(f"{row.where}: {column} must be a short text or a whole number, found {value!r:.60}")
    return str(value)
