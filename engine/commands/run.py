"""`leakatk run`: one experiment file from end to end, then its table, picture, report and MLflow run."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from engine.errors import one_line
from engine.redact import redact

if TYPE_CHECKING:
    from engine.config.experiment import Experiment
    from engine.pipeline.finish import WrittenRun
    from engine.reporting.results import Results
    from engine.store.store import Store


def add_inference(parser: argparse.ArgumentParser) -> None:
    """The option of every command that prints a table of leak@k."""
    parser.add_argument(
        "--inference",
        choices=("population", "prompts"),
        default="population",
        help="intervals for prompts (authors, articles) like these, the default, or for these very prompts",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="experiment file; `leakatk init` writes one")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one key, for example train.lr=2e-5"
    )
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser, runs: bool = True) -> None:
    """Arguments of every command that takes an experiment; runs: and runs it."""
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="where results are kept: a folder, or s3://BUCKET/PREFIX (default ./leakatk-store)",
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON, alone on stdout")
    if runs:
        parser.add_argument("--plan", action="store_true", help="say what each part needs, not only what may not fit")
    add_inference(parser)


def run(args: argparse.Namespace) -> int:
    from engine.config.experiment import load_experiment

    return run_experiment(load_experiment(args.experiment, args.set), args)


@contextlib.contextmanager
def result_alone(json_wanted: bool) -> Iterator[TextIO]:
    """stdout for the result. Where it is JSON, all else that is printed meanwhile goes to stderr: Ray says on stdout
    that a node has died."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if json_wanted else contextlib.nullcontext():
        yield out


def run_experiment(experiment: Experiment, args: argparse.Namespace) -> int:
    """Run it, show and record its results; the exit code is 1 where a method failed."""
    with result_alone(args.json) as out:
        return _run_experiment(experiment, args, out)


def _run_experiment(experiment: Experiment, args: argparse.Namespace, out: TextIO) -> int:
    from engine.pipeline import finish
    from engine.reporting.table import as_json
    from engine.robustness.runner import Attacks
    from engine.store.location import store_path
    from engine.store.store import Store

    store = Store(store_path(args.store))
    written = finish.run_experiment(experiment, store, attacker=Attacks(), whole_plan=args.plan)
    results = written.results
    if args.inference == "prompts":
        results = results.for_these()
    if args.json:
        places = {"folder": str(written.folder), "store": str(store.root)}
        print(json.dumps(as_json(results) | places), file=out, flush=True)
    else:
        _show(results, written, store)
    recorded = finish.record_run(written, store)
    if recorded.state == "waiting":
        print(
            f"leakatk: not in MLflow yet: {redact(one_line(recorded.reason))}; `leakatk sync` records it",
            file=sys.stderr,
        )
    if not args.json:
        _show_next(written, store)
    for name, reason in results.failed.items():
        print(f"leakatk: {name} failed: {redact(reason)}", file=sys.stderr)
    return 1 if results.failed else 0


def _show(results: Results, written: WrittenRun, store: Store) -> None:
    """The tables, and where the run's files are."""
    from engine.reporting.attack_table import print_attacks
    from engine.reporting.results import groups
    from engine.reporting.table import print_metrics, print_remarks, print_table

    for group in groups(results):
        print_table(results, group)
    print_metrics(results)
    print_attacks(results)
    print_remarks(results)
    print(
        f"picture   {written.picture}\nreport    {written.report}\nresults   {written.folder / 'results.json'}",
        flush=True,
    )
    if store.mirror is not None:
        print(f"kept at   {store.address}/{store.mirror.key(written.folder)}", flush=True)


def _show_next(written: WrittenRun, store: Store) -> None:
    """Where MLflow's record is, and what a user may do with the run."""
    from engine.tracking.recorder import tracking_uri

    results, scores = written.results, written.scores
    retain = scores / f"retain.{results.leak_group}.jsonl"
    judged = next((model.name for model in reversed(results.models) if model.role != "retain"), "retain")
    leak = ["leakatk", "leak", f"{scores / judged}.{results.leak_group}.jsonl"]
    if judged != "retain" and retain.exists():
        leak += ["--retain", str(retain)]
    print(f"MLflow    {redact(tracking_uri(store.root))}")
    print("\nnext: open the report; then")
    print(f"  {shlex.join(leak)}")
    print(f"  {shlex.join(['leakatk', 'ui', '--store', store.address])}")
    print("  leakatk init                             an experiment file of your own")
