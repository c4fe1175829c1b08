"""`leakatk attacks`: what a finished model can be put to, with every option and its default."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json

from engine.robustness.base import Attack


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack as it is listed. options: each with its default. on_servers: works on a model behind a server."""

    name: str
    summary: str
    source: str
    options: dict[str, object]
    on_servers: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the list as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.robustness.attacks import ATTACKS

    rows = [_described(name, attack) for name, attack in ATTACKS.items()]
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], default=list))
    else:
        _show(rows)
    return 0


def _described(name: str, attack: type[Attack]) -> Row:
    text = inspect.getdoc(inspect.getmodule(attack)) or ""
    return Row(
        name=name,
        summary=text.splitlines()[0],
        source=" ".join(text.rpartition("Source")[2].partition(": ")[2].split()),
        options={field.alias or key: field.get_default() for key, field in attack.model_fields.items()},
        on_servers=attack.on_servers,
    )


def _show(rows: list[Row]) -> None:
    from engine.reporting.terminal import plain_table, wide_console

    table = plain_table()
    for heading in ("attack", "what it does", "options and defaults", "servers", "source"):
        table.add_column(heading, no_wrap=heading == "attack")
    for row in rows:
        options = ", ".join(f"{key} {json.dumps(value, default=list)}" for key, value in row.options.items())
        table.add_row(row.name, row.summary, options, "yes" if row.on_servers else "no", row.source)
    console = wide_console(160)
    console.print(table)
    console.print("In an experiment: attacks: [{name: quantize, scheme: nf4}]", highlight=False, markup=False)
