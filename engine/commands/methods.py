"""`leakatk methods`: the unlearning methods with what they need and their hyperparameters."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.jsonl import JsonObject
    from methods.base import Method


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the list as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from methods import METHODS

    rows = [_described(name, method) for name, method in METHODS.items()]
    if args.json:
        print(json.dumps(rows))
    else:
        _show(rows)
    return 0


def _described(name: str, method: type[Method]) -> JsonObject:
    """Name, first line and source of its module's text, hyperparameters with defaults, and what its loss reads."""
    text = inspect.getdoc(inspect.getmodule(method)) or ""
    return {
        "name": name,
        "summary": text.splitlines()[0],
        "source": " ".join(text.partition("Source: ")[2].split()),
        "hyperparameters": {
            key: "required" if field.is_required() else field.default for key, field in method.model_fields.items()
        },
        "needs": sorted(method.needs),
    }


def _show(rows: list[JsonObject]) -> None:
    from engine.reporting.terminal import plain_table, wide_console

    table = plain_table()
    for heading in ("method", "what it does", "hyperparameters and defaults", "needs", "source"):
        table.add_column(heading, no_wrap=heading == "method")
    for row in rows:
        fields = ", ".join(f"{key} {_short(value)}" for key, value in row["hyperparameters"].items())
        table.add_row(row["name"], row["summary"], fields, ", ".join(row["needs"]), row["source"])
    wide_console(160).print(table)


def _short(value: object) -> str:
    """A default on one line of a table cell; texts are cut."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:36]} ..."
