"""`leakatk export`: a run as tidy CSV, of its curves or of every score, or as OpenUnlearning's files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.reporting.results import Results

FORMATS = ("csv", "open-unlearning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (`leakatk run` prints it)")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="csv: the curves; or a log for each model")
    parser.add_argument("--items", action="store_true", help="csv: every score, a row for each sample")
    parser.add_argument("--out", type=Path, metavar="PATH", help="file (csv) or folder (default: beside the results)")
    parser.add_argument("--store", metavar="STORE", help="the store that has the run's samples (default: the run's)")
    parser.add_argument("--json", action="store_true", help="the files' paths as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.reporting.results import read_results
    from engine.reporting.run_folder import run_path
    from engine.store.location import store_path

    if args.items and args.format != "csv":
        raise UserError("--items: goes with --format csv")
    given = run_path(args.run)
    results = read_results(given)
    folder = given if given.is_dir() else given.parent
    root = store_path(args.store) if args.store else folder.resolve().parents[1]
    write = _write_csv if args.format == "csv" else _write_logs
    written = write(args, results, folder, Path(root))
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
        below = (args.out or folder / "open-unlearning") / model.name
        try:
            below.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{below}: cannot be made ({error.strerror}); choose another --out") from error
        log = open_unlearning(model, results, root)
        for name, value in (("TOFU_EVAL.json", log), ("TOFU_SUMMARY.json", summary(log))):
            with atomic_file(below / name) as stream:
                json.dump(value, stream, indent=1)
            written.append(below / name)
    return written
