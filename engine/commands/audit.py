"""`leakatk audit`: a run as a claim that someone else can check, audit.json and one printable page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

EPILOG = """\
What it says: what was to be forgotten, of which model, asked how; leak@k with intervals, bound and excess; what follows
from it and what does not; digests of data, models, samples and scores. Ids of prompts stand in it, no texts.

levels, by what was done (each says more than the one before):
  1  sampled                                 n answers a prompt instead of one greedy one
  2  sampled and attacked                    `attacks:` in the experiment (`leakatk attacks` lists them)
  3  sampled, attacked, with a retain model  what a model gives that never saw the data is known

  leakatk audit leakatk-store/runs/NAME-FINGERPRINT
  leakatk verify leakatk-store/runs/NAME-FINGERPRINT/audit.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (`leakatk run`, `evaluate` and `import` print it)")
    parser.add_argument("--store", metavar="STORE", help="the store that has the run's samples (default: the run's)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where audit.json, audit.html go (default: the run's)"
    )
    parser.add_argument(
        "--with-texts", action="store_true", help="show the prompts that leak most, with what was said: may be private"
    )
    parser.add_argument("--json", action="store_true", help="the audit as JSON, alone on stdout")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    from engine.audit.claim import AUDIT_FILE, LEVELS
    from engine.audit.make import make_audit
    from engine.audit.page import audit_page
    from engine.errors import UserError
    from engine.reporting.results import read_results
    from engine.reporting.run_folder import run_path
    from engine.store.files import write_atomic
    from engine.store.location import store_path

    given = run_path(args.run)
    results = read_results(given)
    folder = given if given.is_dir() else given.parent
    root = store_path(args.store) if args.store else folder.resolve().parents[1]
    audit = make_audit(results, Path(root), args.with_texts)
    out, values = args.out or folder, audit.as_json()
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / AUDIT_FILE, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False))
        write_atomic(out / "audit.html", audit_page(audit))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    if args.json:
        print(json.dumps(values, allow_nan=False))
        return 0
    print(
        f"level {audit.level} of 3: {LEVELS[audit.level]}\n", *audit.follows, "", *audit.does_not_follow, "", sep="\n"
    )
    print(f"audit     {out / AUDIT_FILE}\npage      {out / 'audit.html'}")
    return 0
