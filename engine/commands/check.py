"""`leakatk check`: a forget set, probes or generations looked over before anything is paid."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.reporting.data_check import DataCheck

SHOWN = 5  # rows of a finding that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a file or folder, as the benchmark `files` reads them: rows of question and answer, text, prompt and "
        "reference, or responses",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="count tokens by this model's tokenizer (default: about 4 letters)"
    )
    parser.add_argument("--n", type=int, default=200, help="samples a prompt, for what it will cost (default: 200)")
    parser.add_argument("--columns", metavar="OURS=THEIRS,...", help="columns of other names, such as question=frage")
    parser.add_argument("--json", action="store_true", help="the result as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.reporting.data_check import check_file

    if args.n < 1:
        raise UserError(f"--n must be at least 1, found {args.n}")
    if not args.file.exists():
        raise UserError(f"{args.file}: there is no such file or folder")
    result = check_file(args.file, args.n, _columns(args.columns), _counter(args.model))
    if args.json:
        counts = {finding.what.replace(" ", "_"): len(finding.rows) for finding in result.findings}
        print(json.dumps({**dataclasses.asdict(result), "usable": result.usable, "counts": counts}))
    else:
        _show(result, args.file)
    return 0 if result.usable else 1


def _columns(given: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given.split(",")] if given else []
    if any(not ours or not equals or not theirs for ours, equals, theirs in pairs):
        raise UserError(f"--columns {given}: expected OURS=THEIRS, for example question=frage,answer=antwort")
    return {ours: theirs for ours, _, theirs in pairs}


def _counter(model: str | None) -> Callable[[str], int] | None:
    """How many tokens a text has by the model's tokenizer."""
    if model is None:
        return None
    from engine.models.source import model_source
    from engine.models.tokenization import load_tokenizer

    source = model_source(model, where="--model", identified=False)
    tokenizer = load_tokenizer(source.path, revision=source.revision)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _show(result: DataCheck, path: Path) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    samples = f" of {result.samples[0]} to {result.samples[1]} samples" if result.samples else ""
    console.print(f"{path}: {result.kind}, {result.rows} rows{samples}", markup=False)
    if result.clusters:
        console.print(f"clusters: {result.clusters}, the largest of {result.largest_cluster} rows")
    else:
        console.print(
            "clusters: none named; rows that share a person or a document leak together: name it by `cluster`"
        )
    about = "" if result.tokens.exact else "about "
    console.print(
        f"tokens: {about}{result.tokens.questions:,} in questions, {about}{result.tokens.answers:,} in answers; "
        f"the longest row {about}{result.tokens.longest:,}"
    )
    if result.kind != "generations":
        console.print(
            f"cost: {about}{result.trained:,} tokens an epoch, and with n = {result.n} at most {result.sampled:,} "
            "sampled tokens for each model and decoding; `leakatk doctor EXPERIMENT.yaml` says what fits"
        )
    styles = {"no": "bold red", "note": "yellow"}
    for finding in result.findings:
        rows = ", ".join(finding.rows[:SHOWN]) + (", ..." if len(finding.rows) > SHOWN else "")
        console.print(f"[{styles[finding.state]}]{finding.state:4}[/] ", end="")
        console.print(f"{len(finding.rows)} {finding.what} ({rows}): {finding.said}", markup=False)
    if not result.findings:
        console.print("nothing stands out")
