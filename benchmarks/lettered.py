"""Questions with four lettered choices, of MMLU's columns, in lm-evaluation-harness's form.

Rows come in, running text that ends with "Answer:" comes out (benchmarks/wmdp.py shows one), without a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.base import Choice
from engine.errors import UserError

LETTERS = "ABCD"


def checked(path: str, config: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows if each has four `choices` and in `answer` the index of the right one; else UserError names the row."""
    for index, row in enumerate(rows):
        if len(row["choices"]) != len(LETTERS) or row["answer"] not in range(len(LETTERS)):
            raise UserError(
                f"benchmark.path {path}: config {config!r}: row {index} should have {len(LETTERS)} choices and an "
                f"answer in 0..{len(LETTERS) - 1}; found {len(row['choices'])} and {row['answer']!r}"
            )
    return rows


def lettered_choice(
    name: str, row: dict[str, Any], subject: str, group: str, examples: Sequence[dict[str, Any]] = ()
) -> Choice:
    """A row as a question about `subject`, after `examples` with their answers, continued by one of the letters."""
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    shots = "".join(f"{_asked(each)} {LETTERS[each['answer']]}\n\n" for each in examples)
    return Choice(
        name, head + shots + _asked(row), tuple(f" {letter}" for letter in LETTERS), int(row["answer"]), group
    )


def _asked(row: dict[str, Any]) -> str:
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{lines}\nAnswer:"
