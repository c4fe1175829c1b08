"""`leakatk evaluate`: leak@k and utility of an existing model, with its excess over a retain model if one is given."""

from __future__ import annotations

import argparse

from engine.commands.run import add_common_arguments, run_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH_OR_NAME",
        help="a model folder or hub name; with --endpoint its name there",
    )
    parser.add_argument("--retain", metavar="PATH_OR_NAME", help="the same for a model that never saw the forget set")
    parser.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server that has the models, http://HOST:PORT/v1"
    )
    parser.add_argument(
        "--key-variable",
        metavar="NAME",
        help="environment variable that holds the server's key (default OPENAI_API_KEY)",
    )
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="`leakatk benchmarks` lists them")
    parser.add_argument(
        "--attacks",
        default="",
        metavar="NAME[,NAME ...]",
        help="what the model, and the retain model, are put to as well (`leakatk attacks`), with default options",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="as in `leakatk run`: sampling.n=64"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from engine.config.experiment import evaluation_of

    attacks = [name for name in args.attacks.split(",") if name]
    experiment = evaluation_of(
        args.model, args.benchmark, args.retain, args.endpoint, args.key_variable, args.set, attacks
    )
    return run_experiment(experiment, args)
