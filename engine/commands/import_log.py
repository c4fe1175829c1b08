"""`leakatk import`: others' evaluation logs, their figures computed again from the items beside what they state."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.errors import UserError, one_line
from engine.jsonl import JsonValue

TOLERANCE = 1e-4  # of a stated figure: beyond it a difference is pointed out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log", type=Path, metavar="LOG", help="OpenUnlearning's TOFU_EVAL.json or MUSE_EVAL.json, TOFU's aggregated log"
    )
    parser.add_argument("--retain", type=Path, metavar="LOG", help="the retain model's log, for forget quality")
    parser.add_argument("--name", metavar="NAME", help="what the table calls the model (default: the file's folder)")
    parser.add_argument("--json", action="store_true", help="computed and stated figures as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.reporting.eval_logs import recompute

    found = recompute(_log(args.log), _log(args.retain) if args.retain else None)
    name = args.name or args.log.resolve().parent.name
    if args.json:
        result = {"name": name, "metrics": found.metrics, "stated": found.stated, "missing": found.missing}
        print(json.dumps(result, allow_nan=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    differing = found.differing(TOLERANCE)
    table = Table(title=f"{name}: {args.log.name}", title_justify="left")
    for heading in ("metric", "from the items", "stated", ""):
        table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
    for metric, value in found.metrics.items():
        remark = "differs" if metric in differing else found.missing.get(metric, "")
        table.add_row(metric, _shown(value), _shown(found.stated.get(metric)), remark)
    console = Console(soft_wrap=True)
    console.width = max(console.width, 110)
    console.print(table)
    if differing:
        console.print(f"{len(differing)} figures differ from what their items give by more than {TOLERANCE:g}")
    return 0


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _log(path: Path) -> JsonValue:
    """A log, parsed. UserError where it is no JSON or none of the kinds."""
    from engine.reporting.eval_logs import is_eval_log

    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(str(error))[:120]}); JSON lines: `leakatk score`") from error
    if not is_eval_log(value):
        raise UserError(
            f"{path}: no evaluation log; read are OpenUnlearning's TOFU_EVAL.json and MUSE_EVAL.json, of metrics with "
            "agg_value and value_by_index, and TOFU's eval_log_aggregated.json"
        )
    return value
