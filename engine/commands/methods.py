"""`leakatk methods`: the unlearning methods with what they need and their hyperparameters."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any


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


def _described(name: str, method: Any) -> dict[str, Any]:
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


def _show(rows: list[dict[str, Any]]) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "hyperparameters and defaults", "needs", "source", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for row in rows:
        fields = ", ".join(f"{key} {_short(value)}" for key, value in row["hyperparameters"].items())
        table.add_row(row["name"], row["summary"], fields, ", ".join(row["needs"]), row["source"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _short(value: Any) -> str:
    """A default on one line of a table cell; texts are cut."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:36]} ..."
