"""`leakatk demo`: the embedded default, an experiment file that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.commands.run import add_common_arguments, run_experiment
from engine.errors import UserError

DEMO = Path(__file__).with_name("demo.yaml")
MORE = Path(__file__).with_name("demo_methods.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the authors, of training and of sampling (default 0)"
    )
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help="these methods instead: any of `leakatk methods`, and rule-npo, rule-simnpo with their controls",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from engine.config.experiment import parse_experiment
    from engine.errors import known

    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 up")
    document = demo_document(args.seed, everything=bool(args.methods))
    experiment = parse_experiment(document, "the demo")
    if args.methods:
        by_label = {experiment.label(method): method for method in experiment.methods}
        labels = dict.fromkeys(name.strip().replace("_", "-") for name in args.methods.split(","))
        for label in labels:
            known(label, by_label, "--methods", "leakatk methods")
        experiment = experiment.model_copy(update={"methods": tuple(by_label[label] for label in labels)})
    return run_experiment(experiment, args)


def demo_document(seed: int, everything: bool = False) -> dict[str, object]:
    """The demo's experiment as read from its file; with `everything`, all methods that there are."""
    import yaml

    document = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    if everything:
        document["methods"] += yaml.safe_load(MORE.read_text(encoding="utf-8"))["methods"]
    return {**document, "seed": seed, "benchmark": {**document["benchmark"], "seed": seed}}
