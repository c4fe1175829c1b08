"""`leakatk score`: one metric over generations that someone else made, streaming."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.loader import parsed
from engine.errors import UserError, one_line
from engine.metrics import METRICS
from engine.redact import redact

if TYPE_CHECKING:
    from engine.jsonl import Reading
    from engine.reporting.generations import Generations

SAMPLES_AT_ONCE, CHARACTERS_AT_ONCE = 4096, 2**24  # what is scored together, and so held in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "generations", type=Path, metavar="FILE.jsonl", help="one row a prompt; README.md shows its form"
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE.jsonl",
        help="rows of prompt_id or prompt, and reference, for generations that hold no references of their own",
    )
    parser.add_argument("--metric", required=True, metavar="NAME", help="one of those below")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the metric, for example model=PATH_OR_HUB_NAME; a wrong key lists the valid ones",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="SCORES.jsonl", help="scores, for `leakatk leak`")
    parser.add_argument("--json", action="store_true", help="a summary as JSON, alone on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "metrics:\n" + "\n".join(f"  {name:18} {metric.summary}" for name, metric in METRICS.items())


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was scored: counts of prompts and samples, of failed samples in all and by reason, and of lines left out."""

    prompts: int
    samples: int
    failed: int
    failures: dict[str, int]
    malformed: int


def run(args: argparse.Namespace) -> int:
    from engine.jsonl import Reading
    from engine.metrics import find_metric

    options = _options(args.option)
    find_metric(args.metric, options)
    for name, path in (("generations", args.generations), ("references", args.references)):
        if path is not None and args.out.resolve() == path.resolve():
            raise UserError(f"--out {args.out}: is the file of {name}; choose another name")
    reading = Reading()
    summary = _score_file(args, options, reading)
    _tell_left_out(args.generations, reading)
    for reason, count in summary.failures.items():
        print(f"leakatk: {count} samples failed: {redact(reason)}", file=sys.stderr)
    if args.json:
        print(json.dumps(dataclasses.asdict(summary) | ({"joined": reading.joined} if reading.joined else {})))
    else:
        print(
            f"{summary.prompts} prompts, {summary.samples} samples scored by {args.metric}, "
            f"{summary.failed} failed, {summary.malformed} lines left out -> {args.out}"
        )
    return 0


def _tell_left_out(path: Path, reading: Reading) -> None:
    for number, reason in reading.examples:
        print(f"leakatk: {path}: line {number} left out: {one_line(reason)}", file=sys.stderr)
    if reading.malformed > len(reading.examples):
        print(f"leakatk: {path}: {reading.malformed} malformed lines left out in all", file=sys.stderr)
    if reading.joined:
        print(f"leakatk: {path}: {reading.joined} rows joined to earlier rows of the same prompts", file=sys.stderr)


def _options(given: list[str]) -> dict[str, object]:
    """KEY=VALUE pairs, the value in YAML: 0.1 is a number, yes is true."""
    import yaml

    options = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise UserError(f"--option {option}: expected KEY=VALUE, for example --option model=org/name")
        try:
            options[key] = parsed(value)
        except yaml.YAMLError as error:
            raise UserError(f"--option {option}: the value is not YAML") from error
    return options


def _score_file(args: argparse.Namespace, options: dict[str, object], reading: Reading) -> Summary:
    """Score the generations into `args.out`, which appears whole or not at all."""
    from rich.console import Console
    from rich.progress import Progress

    from engine.jsonl import atomic_file
    from engine.metrics import score_counted
    from engine.reporting.generations import read_generations
    from engine.reporting.scores import score_row

    source, samples, failures = args.generations, 0, Counter[str]()
    console = Console(file=sys.stderr)
    with (
        atomic_file(args.out) as stream,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bars,
    ):
        bar = bars.add_task(f"score by {args.metric}", total=source.stat().st_size if source.is_file() else None)
        for rows in _batches(read_generations(source, reading, args.references)):
            references = [_reference(args.metric, row) for row in rows for _ in row.responses]
            prompts = [row.prompt for row in rows for _ in row.responses]
            responses = [text for row in rows for text in row.responses]
            scored = score_counted(args.metric, responses, references, prompts, **options)
            values = iter(scored.scores)
            for row in rows:
                scores = list(itertools.islice(values, len(row.responses)))
                stream.write(json.dumps(score_row(row.prompt_id, scores, row.cluster)) + "\n")
            samples += len(responses)
            failures += scored.failures
            bars.update(bar, completed=reading.bytes_read)
    failures["no response"] -= reading.odd.total()  # no text is known of these, but what they are
    failures = +failures + reading.odd
    return Summary(reading.rows, samples, failures.total(), dict(failures), reading.malformed)


def _batches(rows: Iterable[Generations]) -> Iterator[list[Generations]]:
    """Rows together up to SAMPLES_AT_ONCE samples or CHARACTERS_AT_ONCE characters, at least one row."""
    batch: list[Generations] = []
    samples = characters = 0
    for row in rows:
        batch.append(row)
        samples += len(row.responses)
        characters += sum(len(text or "") for text in row.responses)
        if samples >= SAMPLES_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, samples, characters = [], 0, 0
    if batch:
        yield batch


def _reference(metric: str, row: Generations) -> str:
    return METRICS[metric].truth(row.reference, row.fact)
