"""`leakatk tune`: search a method's hyperparameters for little leakage at kept utility, then run the winner in full."""

from __future__ import annotations

import argparse
import json
from typing import TextIO

from engine.commands.run import add_common_arguments, result_alone, store_path
from engine.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "space", metavar="SPACE.yaml", help="what is searched, and for what; tune_spaces/ has one a method"
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="benchmark, model, training and sampling")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one key of the experiment"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    with result_alone(args.json) as out:
        return _run(args, out)


def _run(args: argparse.Namespace, out: TextIO) -> int:
    from benchmarks import BENCHMARKS
    from engine.config.experiment import load_experiment
    from engine.search.space import load_space

    experiment = load_experiment(args.experiment, args.set)
    if experiment.requests is not None or experiment.model.endpoint is not None:
        raise UserError(
            f"{args.experiment}: a search takes one request and a model of weights, no requests or endpoint"
        )
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    space = load_space(args.space, experiment.with_protocol(benchmark.protocol), benchmark)

    from engine.pipeline import run as pipeline
    from engine.pipeline.interruption import Ending
    from engine.reporting.run_folder import share_run
    from engine.search.figures import draw
    from engine.search.mlflow_run import record_search
    from engine.search.summary import as_json, halves, print_search, reason_for_none, write_best
    from engine.search.tuner import best_experiment, search
    from engine.store.store import Store

    store = Store(store_path(args.store))
    with Ending(store.root) as ending:
        found = search(experiment, space, store, quiet=False)
        best = best_experiment(found)
        rerun = pipeline.run(best, store, ending=ending) if best is not None else None
    path = write_best(best, found) if best is not None else None
    parts = halves(found, rerun, store.root) if rerun is not None else {}
    pictures = draw(found)
    document = as_json(found, rerun, parts)
    (found.folder / "search.json").write_text(json.dumps(document, indent=1))
    share_run(found.folder)
    record_search(found, document, pictures, store.root)
    if args.json:
        print(json.dumps(document), file=out, flush=True)
    else:
        print_search(found, parts)
        for picture in pictures:
            print(f"picture   {picture}")
        if path is not None:
            print(f"winner    {path}\n\nnext: leakatk run {path} --store {store.address}")
    if path is None:
        raise UserError(f"{reason_for_none(found)}; widen {args.space}, give it more trials, or lower `keep`")
    return 0
