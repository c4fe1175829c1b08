"""`leakatk score`: one metric over generations that someone else made, streaming."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from engine.errors import UserError

ROWS_AT_ONCE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generations", type=Path, metavar="FILE.jsonl", help="one row a prompt; README.md shows its form"
    )
    parser.add_argument("--metric", required=True, help="exact_fact, rouge_l_recall, rouge_l_f1")
    parser.add_argument("--out", type=Path, required=True, metavar="SCORES.jsonl", help="scores, for `leakatk leak`")
    parser.add_argument("--json", action="store_true", help="a summary as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.experiment import known
    from engine.metrics import METRICS

    known(args.metric, METRICS, "--metric", "leakatk score --help")
    if args.out.resolve() == args.generations.resolve():
        raise UserError(f"--out {args.out}: is the file of generations; choose another name")
    summary = _score_file(args.generations, args.metric, args.out)
    for number, reason in summary.pop("examples"):
        print(f"leakatk: {args.generations}: line {number} left out: {reason}", file=sys.stderr)
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{summary['prompts']} prompts, {summary['samples']} samples scored by {args.metric}, "
            f"{summary['failed']} failed, {summary['malformed']} lines left out -> {args.out}"
        )
    return 0


def _score_file(source: Path, metric: str, out: Path) -> dict[str, Any]:
    """Score `source` into `out`, which appears whole or not at all."""
    from rich.console import Console
    from rich.progress import Progress

    from engine.files import Reading, read_generations
    from engine.metrics import score

    reading, samples, failed = Reading(), 0, 0
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        stream = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    console = Console(file=sys.stderr)
    try:
        with stream, Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task(f"score by {metric}", total=source.stat().st_size if source.exists() else None)
            rows = read_generations(source, reading)
            while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
                references = [row.reference for row in batch for _ in row.responses]
                try:
                    values = iter(score(metric, [text for row in batch for text in row.responses], references))
                except ValueError as error:
                    raise UserError(f"{source}: {error}") from error
                for row in batch:
                    scores = list(itertools.islice(values, len(row.responses)))
                    samples += len(scores)
                    failed += sum(each is None for each in scores)
                    stream.write(json.dumps({"prompt_id": row.prompt_id, "scores": scores}) + "\n")
                bars.update(bar, completed=reading.bytes_read)
            if not reading.rows:
                why = f"line {reading.examples[0][0]}: {reading.examples[0][1]}" if reading.examples else "it is empty"
                raise UserError(f"{source}: no row of generations in it ({why})")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "prompts": reading.rows,
        "samples": samples,
        "failed": failed,
        "malformed": reading.malformed,
        "examples": reading.examples,
    }
