"""The leak@k table and the table of the benchmark's own metrics, on the terminal and as JSON, from Results."""

from __future__ import annotations

from engine.jsonl import JsonObject
from engine.reporting.attack_table import attacks_json
from engine.reporting.formatting import interval_text, number_text
from engine.reporting.results import Results
from engine.reporting.terminal import plain_table, wide_console

TABLE_K = (1, 8, 32, 128)
WIDE = 170  # columns of a terminal that has room for every k and for the costs


def table_k(results: Results) -> list[int]:
    """The k of the table's columns: the experiment's first and last, and of 1, 8, 32, 128 those that it has."""
    ks = results.experiment["leak"]["k"]
    return sorted({ks[0], ks[-1], *(k for k in TABLE_K if k in ks)})


def as_json(results: Results) -> JsonObject:
    """The machine-readable result: a row a model, each leak and excess as [estimate, low, high] by k; its stages, the
    folders below the store that hold every sample, score and likelihood, by name."""
    rows = []
    for model, curve in results.headline:
        row: JsonObject = {
            "name": model.name,
            "greedy": model.greedy.get(results.leak_group),
            "leak": {str(k): list(curve.at(k) or ()) for k in curve.k},
            "excess": {str(k): list(excess) for k in curve.k if (excess := curve.excess_at(k)) is not None},
            "utility": model.utility,
            "tokens": model.tokens,
            "seconds": model.seconds,
            "metrics": model.metrics,
            "missing": model.missing,
            "failures": model.failures,
            "notes": model.notes,
            "stages": {name: path for name, path in model.stages.items() if name != "model"},
            "groups": {
                other.group: {
                    "greedy": model.greedy.get(other.group),
                    "leak": {str(k): list(other.at(k) or ()) for k in other.k},
                }
                for other in model.curves
                if other.metric == curve.metric and other.decoding == curve.decoding
            },
        }
        if model.attacks:
            row["attacks"] = attacks_json(model)
        rows.append(row)
    return {"models": rows, "failed": results.failed, "seconds": results.seconds}


def print_table(results: Results, group: str | None = None) -> None:
    """One row a model: greedy, leak@k and excess with intervals, utility, tokens and seconds, on stdout."""
    console = wide_console()
    wide = console.width >= WIDE
    group, ks = group or results.leak_group, table_k(results)
    ks = ks if wide else sorted({ks[0], ks[-1]})
    title = f"leak@k on {group} ({results.core_metric}), {results.confidence:.0%} intervals {results.scope(group)}"
    table = plain_table(title)
    table.add_column("model", no_wrap=True)
    table.add_column("greedy", justify="right")
    for name in (*(f"leak@{k}" for k in ks), f"excess@{ks[-1]}"):
        table.add_column(name, justify="right", no_wrap=wide)  # else an interval goes below its estimate
    for name in ("utility", "tokens", "seconds") if wide else ("utility",):
        table.add_column(name, justify="right", no_wrap=True)
    for model in results.models:
        curve = model.find_curve(group, results.core_metric)
        if curve is None:
            continue
        table.add_row(
            model.name,
            number_text(model.greedy.get(group)),
            *(interval_text(curve.at(k)) for k in ks),
            interval_text(curve.excess_at(ks[-1])) if model.role != "retain" else "",
            number_text(model.utility),
            *((f"{model.tokens:,}", f"{model.seconds:.1f}") if wide else ()),
        )
    for name, reason in results.failed.items():
        table.add_row(name, f"failed: {reason}")
    console.print(table)


def metric_rows(results: Results) -> list[tuple[str, list[str]]]:
    """(metric, its value for each model as text) of the benchmark's own metrics, "-" where there is none."""
    names = dict.fromkeys(name for model in results.models for name in model.metrics)
    return [(name, [_value(model.metrics.get(name)) for model in results.models]) for name in names]


def missing_reasons(results: Results) -> dict[str, list[str]]:
    """Why metrics have no value: the metrics, or metrics of single models, by reason."""
    models_of: dict[str, dict[str, list[str]]] = {}
    for model in results.models:
        for name, reason in model.missing.items():
            models_of.setdefault(reason, {}).setdefault(name, []).append(model.name)
    return {
        reason: [
            name if len(models) == len(results.models) else f"{name} ({', '.join(models)})"
            for name, models in names.items()
        ]
        for reason, names in models_of.items()
    }


def print_metrics(results: Results) -> None:
    """The benchmark's own metrics, a row a metric and a column a model, and why some have no value, on stdout."""
    rows, console = metric_rows(results), wide_console()
    if rows:
        table = plain_table(f"metrics of {results.benchmark['name']}")
        table.add_column("metric", no_wrap=True)
        for model in results.models:
            table.add_column(model.name, justify="right", no_wrap=True)
        for name, values in rows:
            table.add_row(name, *values)
        console.print(table)
    for reason, names in missing_reasons(results).items():
        console.print(f"no {', '.join(names)}: {reason}", highlight=False, markup=False)


def _value(value: float | None) -> str:
    """Three decimals, or three digits in scientific notation where these would show nothing."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"


def print_remarks(results: Results) -> None:
    """What a reader of the table must know of its rows: samples that are missing, and how they were drawn."""
    for model in results.models:
        for remark in model.remarks:
            print(f"{model.name}: {remark}")
