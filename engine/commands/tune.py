"""`leakatk tune`: search a method's hyperparameters for little leakage at kept utility, then run the winner in full."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TextIO

from engine.commands.run import add_common_arguments, result_alone
from engine.config.shipped import space_files
from engine.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "space",
        metavar="SPACE",
        help=f"what is searched, and for what: a file, or the name of one that ships: {', '.join(space_files())}",
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
    from engine.config.experiment import load_experiment
    from engine.search.space import space_for

    experiment = load_experiment(args.experiment, args.set)
    space = space_for(args.space, experiment)

    from engine.search.finish import run_search
    from engine.search.summary import print_search, reason_for_none
    from engine.store.location import store_path
    from engine.store.store import Store

    store = Store(store_path(args.store))
    finished = run_search(experiment, space, store, whole_plan=args.plan)
    if args.json:
        print(json.dumps(finished.document), file=out, flush=True)
    else:
        print_search(finished.search, finished.halves)
        for picture in finished.pictures:
            print(f"picture   {picture}")
        if finished.best_file is not None:
            again = shlex.join(["leakatk", "run", str(finished.best_file), "--store", store.address])
            print(f"winner    {finished.best_file}\n\nnext: {again}")
    if finished.best_file is None:
        reason = reason_for_none(finished.search)
        raise UserError(f"{reason}; widen {args.space}, give it more trials, or lower `keep`")
    return 0
