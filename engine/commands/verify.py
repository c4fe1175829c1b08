"""`leakatk verify`: an audit checked against the store, number by number and digest by digest."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

EPILOG = """\
Every generation that the audit names is scored again; leak@k, intervals, bounds and excess are computed again from
these scores and compared with the audit, as are its sentences; every file is compared with its digest, and every digest
with the audit's. Nothing of the run but the store is read.

exit codes: 0 all of it holds (one line says so), 1 something differs (a line each), 2 no audit, or no store of it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audit", type=Path, metavar="AUDIT.json", help="what `leakatk audit` wrote")
    parser.add_argument(
        "--store", metavar="STORE", help="the store that has the samples (default: the one that the file lies in)"
    )
    parser.add_argument("--json", action="store_true", help="what differs as JSON, alone on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    from engine.audit.claim import read_audit
    from engine.audit.verify import verify_audit
    from engine.store.location import check_store, store_path

    read = read_audit(args.audit)
    root = store_path(args.store or _around(args.audit))
    check_store(root)
    found = verify_audit(read, root)
    if args.json:
        print(json.dumps({"holds": not found.differences, **dataclasses.asdict(found)}))
    elif found.differences:
        print(*found.differences, sep="\n")
    else:
        print(
            f"{args.audit}: holds; {found.samples:,} generations scored again, {found.numbers:,} numbers computed "
            f"again, digests of {found.stages} stages compared"
        )
    return 1 if found.differences else 0


def _around(audit: Path) -> Path | None:
    """The store whose runs the file lies among, None where it lies elsewhere."""
    runs = audit.resolve().parent.parent
    return runs.parent if runs.name == "runs" else None
