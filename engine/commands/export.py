"""`leakatk export`: a run as tidy CSV, of its curves or of every score, or in the forms of others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.reporting.results import Results

FORMATS = ("csv", "open-unlearning", "every-eval-ever")
EPILOG = """\
csv              leak@k and excess over k, a row for each model, group, metric, decoding; --items: every score
open-unlearning  TOFU_EVAL.json and TOFU_SUMMARY.json of each model, as OpenUnlearning writes them, greedy answers in it
every-eval-ever  BENCHMARK/DEVELOPER/MODEL/UUID.json of each model (schema 0.2.2): every leak@k, excess and utility with
                 its uncertainty; --with-texts: UUID_samples.jsonl, a row for each prompt with all its samples
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (`leakatk run` prints it)")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="one of those below (default: csv)")
    parser.add_argument("--items", action="store_true", help="csv: every score, a row for each sample")
    parser.add_argument("--out", type=Path, metavar="PATH", help="file (csv) or folder (default: beside the results)")
    parser.add_argument(
        "--with-texts", action="store_true", help="every-eval-ever: the samples too, which may be private"
    )
    parser.add_argument("--organization", metavar="NAME", help="every-eval-ever: who evaluated (default: not stated)")
    parser.add_argument("--store", metavar="STORE", help="the store that has the run's samples (default: the run's)")
    parser.add_argument("--json", action="store_true", help="the files' paths as JSON, alone on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    from engine.reporting.results import read_results
    from engine.reporting.run_folder import run_path
    from engine.store.location import store_path

    if args.items and args.format != "csv":
        raise UserError("--items: goes with --format csv")
    if (args.with_texts or args.organization) and args.format != "every-eval-ever":
        raise UserError("--with-texts and --organization: go with --format every-eval-ever")
    given = run_path(args.run)
    results = read_results(given)
    folder = given if given.is_dir() else given.parent
    root = store_path(args.store) if args.store else folder.resolve().parents[1]
    write = {"csv": _write_csv, "open-unlearning": _write_logs, "every-eval-ever": _write_records}
    written = write[args.format](args, results, folder, Path(root))
    if args.json:
        print(json.dumps({"files": [str(path) for path in written]}))
    else:
        print(*written, sep="\n")
    return 0


def _write_csv(args: argparse.Namespace, results: Results, folder: Path, root: Path) -> list[Path]:
    from engine.jsonl import atomic_file
    from engine.reporting.export import items_table

    table = items_table(results, root) if args.items else results.table()
    path = args.out or folder / ("items.csv" if args.items else "curves.csv")
    with atomic_file(path) as stream:
        table.to_csv(stream, index=False)
    return [path]


def _write_logs(args: argparse.Namespace, results: Results, folder: Path, root: Path) -> list[Path]:
    from engine.jsonl import atomic_file
    from engine.reporting.export import open_unlearning, summary

    written = []
    for model in results.models:
        below = _folder((args.out or folder / "open-unlearning") / model.name)
        log = open_unlearning(model, results, root)
        for name, value in (("TOFU_EVAL.json", log), ("TOFU_SUMMARY.json", summary(log))):
            with atomic_file(below / name) as stream:
                json.dump(value, stream, indent=1)
            written.append(below / name)
    return written


def _write_records(args: argparse.Namespace, results: Results, folder: Path, root: Path) -> list[Path]:
    from engine.fingerprint import file_digest
    from engine.jsonl import atomic_file, write_json_lines
    from engine.reporting.every_eval_ever import every_eval_ever, sample_rows

    written = []
    for model in results.models:
        record = every_eval_ever(results, model, root, args.organization or "not stated")
        below, evaluation = _folder((args.out or folder / "every-eval-ever") / record.place), record.evaluation
        if args.with_texts:
            rows = list(sample_rows(results, model, root, evaluation))
            samples = below / f"{record.name}_samples.jsonl"
            write_json_lines(samples, rows)
            evaluation = record.with_samples(samples.name, file_digest(samples), len(rows))
            written.append(samples)
        with atomic_file(below / f"{record.name}.json") as stream:
            json.dump(evaluation, stream, indent=1, allow_nan=False)
        written.append(below / f"{record.name}.json")
    return written


def _folder(path: Path) -> Path:
    """A folder to write to, made where it is not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error
    return path
