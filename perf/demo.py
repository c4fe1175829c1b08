"""The demo over seeds: the table of README.md, the median of each number and its range.

    python -m perf.demo [--store FOLDER] [--seeds 0,1,2,3,4] [--numerics native]

Each seed is `leakatk demo --seed S`: what is finished in the store is found. A few minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from engine.commands.demo import demo_document
from engine.config.experiment import parse_experiment
from engine.pipeline.run import run
from engine.reporting.results import Results
from engine.store.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("leakatk-store"))
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds to run (default 0,1,2,3,4)")
    parser.add_argument("--numerics", choices=("portable", "native"), default="portable")
    args = parser.parse_args()
    store = Store(args.store.resolve())
    documents = [demo_document(int(seed)) | {"numerics": args.numerics} for seed in args.seeds.split(",")]
    print(table([run(parse_experiment(document, "the demo"), store) for document in documents]))


def table(runs: list[Results]) -> str:
    """A row a model: over the runs, the median and the lowest and highest value of each number."""
    lines = ["| model | greedy | leak@1 | leak@8 | leak@32 | leak@128 | utility |", "|---|---|---|---|---|---|---|"]
    for name in (model.name for model in runs[0].models):
        of_runs = [(model, curve) for run in runs for model, curve in run.headline if model.name == name]
        columns = [[model.greedy[curve.group] for model, curve in of_runs]]
        columns += [[curve.leak[curve.k.index(k)] for _, curve in of_runs] for k in (1, 8, 32, 128)]
        columns.append([model.utility for model, _ in of_runs if model.utility is not None])
        lines.append(f"| {name} | {' | '.join(map(spread, columns))} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The median and the range, alone where all values are one."""
    low, middle, high = (f"{value:.3f}" for value in (min(values), np.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
