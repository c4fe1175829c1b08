"""`leakatk report`: write a run's HTML report again, from its results."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.commands.run import store_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (`leakatk run` prints it)")
    parser.add_argument(
        "--store", metavar="FOLDER", help="the store that the run's samples stand in (default: the run's)"
    )


def run(args: argparse.Namespace) -> int:
    from engine.figures import write_figures
    from engine.report import write_report
    from engine.results import read_results

    results = read_results(args.run)
    folder = Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent
    write_figures(results, folder)
    root = store_path(args.store) if args.store else folder.resolve().parents[1]
    print(write_report(results, folder, root))
    return 0
