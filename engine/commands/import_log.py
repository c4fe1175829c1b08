"""`leakatk import`: others' evaluation logs as runs, their figures computed again beside what they state."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.metrics import METRICS

if TYPE_CHECKING:
    from engine.pipeline.finish import WrittenRun
    from engine.reporting.imported_log import ImportedLog

EPILOG = """\
read are:
  TOFU_EVAL.json, MUSE_EVAL.json    OpenUnlearning
  eval_log_aggregated.json          TOFU's own evaluation
  samples_TASK_DATE.jsonl           lm-evaluation-harness, --log_samples (results_DATE.json beside it is read too)
  *.eval, *.json                    Inspect, by its own reader: pip install inspect_ai

Answers become a run in the store, which `leakatk report`, `compare`, `export`, `audit` and `sync` take like any other:
leak@1 of one greedy answer a prompt, leak@k up to as many answers as the log holds, excess over --retain. Nothing is
sampled: what the log does not hold stays unknown, and the run says so.

  leakatk import saves/eval/NPO/TOFU_EVAL.json --retain saves/eval/RETAIN/TOFU_EVAL.json --name npo
  leakatk compare leakatk-store/runs/npo-* leakatk-store/runs/simnpo-*
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, metavar="LOG", help="a log of one of the kinds below")
    parser.add_argument(
        "--retain", type=Path, metavar="LOG", help="the retain model's log of the same kind, for excess, forget quality"
    )
    parser.add_argument("--name", metavar="NAME", help="what tables call the model (default: the log's folder)")
    parser.add_argument(
        "--metric", metavar="NAME", help="what leakage is scored by (default: ROUGE-L as the log's own)"
    )
    parser.add_argument("--store", metavar="STORE", help="where the run is kept (default ./leakatk-store)")
    parser.add_argument("--json", action="store_true", help="computed and stated figures as JSON, alone on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    from engine.errors import known
    from engine.pipeline.imported_run import imported_run, run_name
    from engine.reporting.imported_log import read_log
    from engine.store.location import store_path
    from engine.store.store import Store

    if args.metric is not None:
        known(args.metric, METRICS, "--metric", "leakatk score --help")
    if args.name is not None and run_name(args.name) != args.name:
        raise UserError(
            f"--name {args.name}: letters, digits, '.', '_' and '-' alone; for example {run_name(args.name)}"
        )
    if args.name == "retain":
        raise UserError("--name retain: that is what the retain model is called; choose another")
    log, retain = read_log(args.log, args.retain)
    name = args.name or run_name(args.log.resolve().parent.name)
    written = None
    if log.answers:
        store = Store(store_path(args.store))
        written = imported_run(log, retain, name, store, args.metric or log.core_metric)
    if args.json:
        figures = log.figures
        shown = {"name": name, "metrics": figures.metrics, "stated": figures.stated, "missing": figures.missing}
        print(json.dumps(shown | {"run": str(written.folder) if written is not None else None}, allow_nan=False))
        return 0
    _show(args.log, name, log, written)
    return 0


def _show(path: Path, name: str, log: ImportedLog, written: WrittenRun | None) -> None:
    from engine.reporting.table import print_remarks, print_table
    from engine.reporting.terminal import plain_table, wide_console

    figures, console = log.figures, wide_console()
    differing = figures.differing()
    table = plain_table(f"{name}: {path.name}")
    for heading in ("metric", "from the items", "stated", ""):
        table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
    for metric, value in figures.metrics.items():
        remark = "differs" if metric in differing else figures.missing.get(metric, "")
        table.add_row(metric, _shown(value), _shown(figures.stated.get(metric)), remark)
    console.print(table)
    if differing:
        console.print(f"{len(differing)} figures differ from what their items give")
    if written is None:
        print("leakatk: the log holds no answers in words: its figures make no run", file=sys.stderr)
        return
    print_table(written.results)
    print_remarks(written.results)
    print(f"report    {written.report}\nresults   {written.folder / 'results.json'}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
