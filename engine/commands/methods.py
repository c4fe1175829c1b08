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
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "what it does", "hyperparameters and defaults", "needs")
    for row in rows:
        fields = ", ".join(f"{key} {value}" for key, value in row["hyperparameters"].items())
        table.add_row(row["name"], row["summary"], fields, ", ".join(row["needs"]))
    Console().print(table)
    return 0


def _described(name: str, method: Any) -> dict[str, Any]:
    """Name, first line of its module's text, hyperparameters with defaults, and what its loss reads."""
    module = inspect.getmodule(method)
    return {
        "name": name,
        "summary": (inspect.getdoc(module) or "").splitlines()[0],
        "hyperparameters": {key: field.default for key, field in method.model_fields.items()},
        "needs": sorted(method.needs),
    }
