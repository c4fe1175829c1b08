"""`leakatk benchmarks`: the benchmarks with their data, metrics and options."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.base import Benchmark
    from engine.jsonl import JsonObject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the list as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from benchmarks import BENCHMARKS

    rows = [_described(name, benchmark) for name, benchmark in BENCHMARKS.items()]
    if args.json:
        print(json.dumps(rows))
        return 0
    from rich.console import Console

    console = Console(soft_wrap=True)
    for row in rows:
        console.print(f"[bold]{row['name']}[/bold]  {row['summary']}", highlight=False)
        for key, text in row["facts"].items():
            console.print(f"    {key}: {text}", highlight=False, markup=False)
        for key, option in row["options"].items():
            console.print(f"    benchmark.{key}: {option}", highlight=False, markup=False)
    return 0


def _described(name: str, benchmark: type[Benchmark]) -> JsonObject:
    """Name, first paragraph of the module's text, published facts, and each option with its type and default."""
    import dataclasses
    import inspect

    module = inspect.getmodule(benchmark)
    options = {
        key: f"{_type_name(field.annotation)}, default {field.default!r}"
        for key, field in benchmark.Options.model_fields.items()
    }
    summary = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return {"name": name, "summary": summary, "facts": dataclasses.asdict(benchmark.facts), "options": options}


def _type_name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
