"""`leakatk demo`: the embedded default, an experiment file that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.commands.run import add_common_arguments, run_experiment
from engine.errors import UserError

DEMO = Path(__file__).with_name("demo.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the authors, of training and of sampling (default 0)"
    )
    parser.add_argument(
        "--methods", metavar="A,B", help="only these methods, by the names in the table, such as npo,rule-npo"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import yaml

    from engine.experiment import known, parse_experiment

    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 up")
    document = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    document |= {"seed": args.seed, "benchmark": document["benchmark"] | {"seed": args.seed}}
    experiment = parse_experiment(document, "the demo")
    if args.methods:
        by_label = {experiment.label(method): method for method in experiment.methods}
        asked = [name.strip().replace("_", "-") for name in args.methods.split(",")]
        for name in asked:
            known(name, by_label, "--methods", "leakatk demo --help")
        experiment = experiment.model_copy(update={"methods": tuple(by_label[name] for name in dict.fromkeys(asked))})
    return run_experiment(experiment, args)
