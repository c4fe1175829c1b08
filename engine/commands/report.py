"""`leakatk report`: write a run's HTML report again, from its results, and its pictures for a paper."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (`leakatk run` prints it)")
    parser.add_argument("--store", metavar="STORE", help="the store that has the run's samples (default: the run's)")
    parser.add_argument("--figures", choices=("pdf", "svg"), help="write the pictures for a paper, too, in this format")
    parser.add_argument("--json", action="store_true", help="verdict and paths as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.reporting.figures import write_figures, write_paper_figures
    from engine.reporting.html_report import write_report
    from engine.reporting.results import read_results
    from engine.reporting.run_folder import run_path
    from engine.reporting.verdict import verdict
    from engine.store.location import store_path

    given = run_path(args.run)
    results = read_results(given)
    folder = given if given.is_dir() else given.parent
    write_figures(results, folder)
    root = store_path(args.store) if args.store else folder.resolve().parents[1]
    report = write_report(results, folder, root)
    figures = write_paper_figures(results, folder, args.figures) if args.figures else []
    if args.json:
        paths = {"report": str(report), "figures": [str(path) for path in figures]}
        print(json.dumps({"verdict": verdict(results), **paths}))
    else:
        print(*verdict(results), sep="\n")
        print(*(report, *figures), sep="\n")
    return 0
