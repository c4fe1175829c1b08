"""Every fault at random moments of a small experiment, and what came of it, as a table.

python -m tests.e2e.chaos [--runs 3] [--first-seed 0] [--faults "driver,full disk"] [--log FILE] [--write PAGE.md]

--log keeps each outcome as a JSON line, and what stands there is not run again; --write puts the table between the
marks of a page.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS
from perf.report import insert, machine, table
from tests.e2e import faults
from tests.e2e.disturbed import OF_TWO, attacked, experiment
from tests.e2e.faults import Outcome, Places, TooLateError, Undisturbed, undisturbed
from tests.e2e.hosts import may_make_namespaces

TWO = "training worker, one of two"
ATTACKS = ("driver during attacks", "worker during attacks")
FAULTS: dict[str, Callable[[Undisturbed, random.Random, Path, Places], Outcome]] = {
    "training worker": faults.killed_worker("training worker"),
    "sampling worker": faults.killed_worker("sampling worker"),
    "scoring worker": faults.killed_worker("scoring worker"),
    "driver": faults.killed_driver,
    "SIGTERM": faults.asked_to_end,
    "MLflow server": faults.killed_mlflow,
    "a host of three": faults.killed_host,
    "the head of three hosts": faults.killed_head,
    "network of a host cut": faults.cut_network,
    "full disk": faults.full_disk,
    "damaged parquet": faults.damaged("s*/*/units/*.parquet"),
    "damaged safetensors": faults.damaged("train/*/model/*.safetensors"),
    "damaged manifest": faults.damaged("*/*/manifest.json"),
    "driver, and damaged unfinished work": faults.damaged_unfinished,
    "the same experiment twice at once": faults.twice_at_once,
    TWO: faults.killed_worker(TWO),
    ATTACKS[0]: faults.killed_driver_of_attacks,
    ATTACKS[1]: faults.killed_attacker,
}
NEED_ROOT = ("network of a host cut", "full disk")  # namespaces and mounts
IN_STORE = {"MLFLOW_TRACKING_URI": ""}  # recorded in the store itself
TRIES = 6  # at a moment that came after the run's end, each at half the time of the one before


def disturb(name: str, seed: int, whole: Undisturbed, folder: Path, places: Places) -> Outcome:
    """One run of one fault."""
    for attempt in range(TRIES):
        below = folder / f"{name.replace(' ', '-')}-{seed}-{attempt}"
        below.mkdir()
        try:
            return FAULTS[name](whole, random.Random(f"{name} {seed} {attempt}"), below, places)
        except TooLateError:
            whole = whole.hurried()
        finally:
            shutil.rmtree(below, ignore_errors=True)
    return Outcome("never", False, 0, f"the run ended {TRIES} times before it could be disturbed")


def run_faults(todo: Sequence[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    """The outcome of each (seed, fault), as an entry of the log."""
    places = Places()
    with tempfile.TemporaryDirectory(prefix="lk") as temporary, contextlib.closing(places):
        folder, driver = Path(temporary), places.local()
        BENCHMARKS["fictional"].load().base_model(model := folder / "model", seed=0)
        undisturbed(folder / "cold", experiment(model), driver)  # its times are those of imports
        whole = undisturbed(folder / "undisturbed", experiment(model), driver, IN_STORE)
        print(json.dumps({"undisturbed": {name: round(each, 1) for name, each in whole.seconds.items()}}), flush=True)
        others: dict[str, Undisturbed] = {}
        for seed, name in todo:
            began = time.monotonic()
            try:
                if name == TWO and TWO not in others:
                    others[TWO] = undisturbed(folder / "of-two", experiment(model, OF_TWO, n=8), places.local())
                if name in ATTACKS and name not in others:
                    one = undisturbed(folder / "attacked", attacked(model), places.local())
                    others |= dict.fromkeys(ATTACKS, one)
                found = disturb(name, seed, others.get(name, whole), folder, places)
            except Exception as error:  # the other faults are still to be seen
                found = Outcome("", False, 0, f"{type(error).__name__}: {error}")
            entry = {"fault": name, "seed": seed, **dataclasses.asdict(found)}
            yield entry | {"seconds": round(time.monotonic() - began)}


def summary(outcomes: dict[str, list[Outcome]]) -> str:
    """(fault, runs, identical, lost) as a Markdown table, with a last row of all."""
    rows = [
        [name, str(len(each)), str(sum(one.identical for one in each)), str(sum(one.lost for one in each))]
        for name, each in outcomes.items()
    ]
    total = [str(sum(int(row[column]) for row in rows)) for column in (1, 2, 3)]
    return table(["fault", "runs", "identical", "lost"], [*rows, ["all", *total]])


def chosen(names: str | None) -> list[str]:
    picked = [each.strip() for each in names.split(",")] if names else list(FAULTS)
    if unknown := set(picked) - set(FAULTS):
        raise SystemExit(f"no such fault: {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    if not may_make_namespaces():
        left_out = [name for name in picked if name in NEED_ROOT]
        if left_out:
            print(f"left out, they need root and `ip`: {', '.join(left_out)}", file=sys.stderr)
    return [name for name in picked if name not in NEED_ROOT or may_make_namespaces()]


def read_log(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def log_key(entry: dict[str, Any]) -> tuple[int, str]:
    return entry["seed"], entry["fault"]


def of_log(entry: dict[str, Any]) -> Outcome:
    return Outcome(*(entry[field.name] for field in dataclasses.fields(Outcome)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each fault")
    parser.add_argument("--faults", help="only these, by their names in the table, with commas")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first run of each fault")
    parser.add_argument("--log", type=Path, help="file of the outcomes, to go on from")
    parser.add_argument("--write", type=Path, help="page to put the table into")
    args = parser.parse_args(argv)
    names = chosen(args.faults)
    log = read_log(args.log)
    todo = [(seed, name) for seed in range(args.first_seed, args.first_seed + args.runs) for name in names]
    todo = [(seed, name) for seed, name in todo if not any(log_key(each) == (seed, name) for each in log)]
    for entry in run_faults(todo) if todo else ():
        log.append(entry)
        print(json.dumps(entry), flush=True)
        if args.log:
            with args.log.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
    outcomes = {name: [of_log(each) for each in log if each["fault"] == name] for name in FAULTS}
    outcomes = {name: each for name, each in outcomes.items() if each}
    minutes = sum(each["seconds"] for each in log) / 60
    page = f"{machine('make chaos')}; {minutes:.0f} minutes\n\n{summary(outcomes)}"
    print(page)
    if args.write:
        insert(args.write, "measured", page)
    return 0 if all(one.identical and not one.lost for each in outcomes.values() for one in each) else 1


if __name__ == "__main__":
    sys.exit(main())
