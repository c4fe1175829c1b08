"""`leakatk sync`: record in MLflow what could not be recorded when it ended, exactly once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs' folders (default: all of the store)")
    parser.add_argument("--store", metavar="STORE", help="the store (default ./leakatk-store)")
    parser.add_argument("--json", action="store_true", help="the state of each run as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.redact import redact
    from engine.reporting.run_folder import run_path
    from engine.store.location import check_store, store_path
    from engine.tracking.recorder import tracking_uri
    from engine.tracking.sync import runs_of, sync

    root = store_path(args.store)
    check_store(root)
    records = sync([run_path(run) for run in args.runs] or runs_of(root), root)
    uri = redact(tracking_uri(root))
    waiting = [record for record in records if record.state == "waiting"]
    if args.json:
        print(json.dumps({"uri": uri, "runs": [dataclasses.asdict(record) for record in records]}))
    else:
        for record in records:
            print(f"{record.state:14} {record.run}")
    for reason in dict.fromkeys(record.reason for record in waiting):
        count = sum(record.reason == reason for record in waiting)
        print(f"leakatk: {count} of {len(records)} runs wait for {uri}: {reason}", file=sys.stderr)
    return 1 if waiting else 0
