"""`leakatk run`: one experiment file from end to end, then its table, picture, report and MLflow run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from engine.errors import UserError, one_line
from engine.redact import redact

if TYPE_CHECKING:
    from engine.config.experiment import Experiment

DEFAULT_STORE = "leakatk-store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="experiment file; examples/ has commented ones")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one key, for example train.lr=2e-5"
    )
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs an experiment."""
    parser.add_argument(
        "--store",
        metavar="STORE",
        help=f"where results are kept: a folder, or s3://BUCKET/PREFIX (default ./{DEFAULT_STORE})",
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON, alone on stdout")


def store_path(given: str | None) -> Path:
    """The store's folder: --store, LEAKATK_STORE or ./leakatk-store, absolute; of a URL, its copy on this machine."""
    from engine.store.object_store import is_url
    from engine.store.replica import local_copy

    where = given or os.environ.get("LEAKATK_STORE") or DEFAULT_STORE
    return local_copy(where) if is_url(where) else Path(where).expanduser().resolve()


def run_path(given: str) -> Path:
    """A run's folder or file; of a URL such as s3://BUCKET/PREFIX/runs/NAME, its newest copy on this machine."""
    from engine.reporting.run_folder import collect_runs
    from engine.store.object_store import is_url
    from engine.store.replica import local_copy

    if not is_url(given):
        return Path(given)
    url, found, name = given.rstrip("/").rpartition("/runs/")
    if not found:
        raise UserError(f"{given}: not a run; give STORE/runs/NAME (`leakatk run` prints it)")
    root = local_copy(url)
    collect_runs(root, [name.split("/")[0]])
    return root / "runs" / name


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
    """Run it, write what it found into its run folder, record it, show it; 1 where a method failed."""
    with result_alone(args.json) as out:
        return _run_experiment(experiment, args, out)


def _run_experiment(experiment: Experiment, args: argparse.Namespace, out: TextIO) -> int:
    from engine.pipeline import run as pipeline
    from engine.pipeline.interruption import Ending
    from engine.reporting.export import write_scores
    from engine.reporting.figures import write_figures
    from engine.reporting.html_report import write_report
    from engine.reporting.run_folder import share_run
    from engine.reporting.table import as_json, print_metrics, print_remarks, print_table
    from engine.store.files import locked
    from engine.store.store import Store
    from engine.tracking.mlflow_run import tracking_uri
    from engine.tracking.sync import record_soon
    from engine.tracking.system_metrics import SystemMetrics

    store = Store(store_path(args.store))
    with SystemMetrics() as system, Ending(store.root) as ending:
        results = pipeline.run(experiment, store, ending=ending)
    folder = pipeline.run_folder(store, results)
    with locked(store.root / "runs.lock"):  # the same experiment may end twice at once
        results.write(folder)
        system.write(folder)
        picture = write_figures(results, folder)
        scores = write_scores(results, folder, store.root)
        report = write_report(results, folder, store.root)
        share_run(folder)
    if args.json:
        print(json.dumps(as_json(results)), file=out, flush=True)
    else:
        groups = dict.fromkeys(curve.group for model in results.models for curve in model.curves)
        for group in groups:
            print_table(results, group)
        print_metrics(results)
        print_remarks(results)
        print(f"picture   {picture}\nreport    {report}\nresults   {folder / 'results.json'}", flush=True)
        if store.mirror is not None:
            print(f"kept at   {store.address}/{store.mirror.key(folder)}", flush=True)
    recorded = record_soon(results, folder, store.root)
    if recorded.state == "waiting":
        print(
            f"leakatk: not in MLflow yet: {redact(one_line(recorded.reason))}; `leakatk sync` records it",
            file=sys.stderr,
        )
    if not args.json:
        print(f"MLflow    {redact(tracking_uri(store.root))}")
        retain = scores / f"retain.{results.leak_group}.jsonl"
        compare = f" --retain {retain}" if retain.exists() else ""
        print("\nnext: open the report; then")
        print(f"  leakatk leak {scores}/{results.models[-1].name}.{results.leak_group}.jsonl{compare}")
        print(f"  leakatk ui --store {store.address}")
        print("  leakatk run examples/fictional.yaml      a file to copy for an experiment of your own")
    for name, reason in results.failed.items():
        print(f"leakatk: {name} failed: {redact(reason)}", file=sys.stderr)
    return 1 if results.failed else 0


def check_store(path: Path) -> None:
    """UserError unless the store is there."""
    if not path.is_dir():
        raise UserError(f"{path}: no store there; run an experiment first, or name the store by --store")
