"""`leakatk doctor`: what this machine or cluster has, what will and will not work, and the plan of an experiment."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from engine.commands.run import add_common_arguments

if TYPE_CHECKING:
    from engine.pipeline.preflight import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT.yaml", help="also say whether this experiment fits, and what would"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one key of the experiment"
    )
    parser.add_argument(
        "--gpus",
        metavar="NxGPU",
        help="plan for a machine that is not here: GPUs by name or GiB of each, as 8xh100, 1x80, 4x24",
    )
    add_common_arguments(parser, runs=False)


def run(args: argparse.Namespace) -> int:
    from engine.cluster.hardware import node_of
    from engine.config.experiment import load_experiment
    from engine.pipeline.preflight import examine
    from engine.robustness.runner import Attacks
    from engine.store.location import store_path
    from engine.store.store import Store

    experiment = load_experiment(args.experiment, args.set) if args.experiment else None
    imagined = node_of(args.gpus) if args.gpus else None
    checks = examine(Store(store_path(args.store)), experiment, imagined, Attacks().trainings)
    failed = any(check.state == "no" for check in checks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]}))
    else:
        _show(checks)
    return 1 if failed else 0


def _show(checks: list[Check]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True)
    styles = {"yes": "green", "no": "bold red", "note": "yellow"}
    for check in checks:
        mark = f"[{styles[check.state]}]{check.state:4}[/]"
        console.print(f"{mark} ", end="")
        console.print(f"{check.what}: {check.said}", markup=False, highlight=False)
