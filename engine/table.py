"""The leak@k table on the terminal and as JSON, from Results."""

from __future__ import annotations

import sys
from typing import Any

from engine.results import Results

TABLE_K = (1, 8, 32, 128)


def table_k(results: Results) -> list[int]:
    """The k of the table's columns: 1, 8, 32, 128 as far as they were asked for, else the first and the last."""
    asked = results.experiment["leak"]["k"]
    return [k for k in TABLE_K if k in asked] or sorted({asked[0], asked[-1]})


def as_json(results: Results) -> dict[str, Any]:
    """The machine-readable result: a row a model, each leak and excess as [estimate, low, high] by k."""
    rows = []
    for model, curve in results.headline:
        row: dict[str, Any] = {
            "name": model.name,
            "greedy": model.greedy[results.leak_group],
            "leak": {str(k): list(curve.at(k) or ()) for k in curve.k},
            "excess": {str(k): list(each) for k in curve.k if (each := curve.excess_at(k)) is not None},
            "utility": model.utility,
            "tokens": model.tokens,
            "seconds": model.seconds,
            "groups": {
                other.group: {
                    "greedy": model.greedy[other.group],
                    "leak": {str(k): list(other.at(k) or ()) for k in other.k},
                }
                for other in model.curves
                if other.metric == curve.metric and other.decoding == curve.decoding
            },
        }
        rows.append(row)
    return {"models": rows, "failed": results.failed, "seconds": results.seconds}


def print_table(results: Results, group: str | None = None) -> None:
    """One row a model: greedy, leak@k and excess with intervals, utility, tokens and seconds, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    group = group or results.leak_group
    ks = table_k(results)
    percent = f"{results.confidence:.0%}"
    title = f"leak@k on {group} ({results.core_metric}), {percent} intervals over prompts"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("greedy", justify="right")
    for k in ks:
        table.add_column(f"leak@{k}", justify="right", no_wrap=True)
    table.add_column(f"excess@{ks[-1]}", justify="right", no_wrap=True)
    for name in ("utility", "tokens", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in results.models:
        curve = model.curve(group, results.core_metric)
        if curve is None:
            continue
        table.add_row(
            model.name,
            f"{model.greedy[group]:.3f}",
            *(_interval(curve.at(k)) for k in ks),
            _interval(curve.excess_at(ks[-1])) if model.role != "retain" else "",
            f"{model.utility:.3f}",
            f"{model.tokens:,}",
            f"{model.seconds:.1f}",
        )
    for name, reason in results.failed.items():
        table.add_row(name, f"failed: {reason}")
    # A pipe or a file has no width of its own: never wrap a row there.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


def _interval(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "-"
    estimate, low, high = values
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")
