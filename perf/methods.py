"""Every unlearning method on the embedded benchmark, over seeds: the table of docs/methods.md.

    python -m perf.methods [--store FOLDER] [--seeds 0,1,2] > docs/methods.md

Each seed is one experiment in the store, the demo with every method (engine/commands/demo_methods.yaml); a second call
finds its stages finished. About ten minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.commands.demo import demo_document
from engine.config.experiment import Experiment, parse_experiment
from engine.pipeline import run as pipeline
from engine.reporting.results import Results
from engine.store.store import Store
from methods import METHODS

TEXT = """\
# Methods

Every method that trains, on the embedded benchmark (`forget10`: 72 questions about 6 made-up authors; 128 samples a
question; exact fact as the core metric), by one command:

```bash
python -m perf.methods --seeds {seeds} > docs/methods.md
```

Each number is the mean over seeds {seeds}; a seed makes other authors, another target model and other samples. In
brackets stand the lowest and the highest end of the seeds' 95 % intervals; greedy and utility are followed by their
range.

Settings are those of `leakatk demo --methods ...` (`engine/commands/demo.yaml`, `demo_methods.yaml`). They were moved a
little, on one seed, in the spirit of what the papers use, and not searched: this is a table of what the methods do when
used with moderate care, not a ranking of methods each at its best. Use `leakatk tune` before you judge one. Arithmetic
is `numerics: native`: another processor gives other numbers
([sampling.md](sampling.md#the-same-bits-on-every-processor)).

What to read from it: greedy answers that are gone (greedy near 0) with leak@128 far above it; utility that was paid;
and RULE beside its control, which took as many steps without samples.

{table}

Seconds are of training and evaluating the one model, over all workers, and depend on the machine and what else runs
on it: an order of magnitude. `retain` never saw the forget set: it is what `retrain` makes. `dpo` and `idk_dpo` are
one loss, both with refusals here. `altpo` learns from alternates that the target model samples, and this target model
has only the right answer to give. `dpo`, `idk_dpo`, `altpo` and `flat` still say the answers by greedy decoding: with
these settings they have not forgotten, and no number of theirs says more than that. `ceu`, `flat`, `grad_ascent` and
`task_vector` read no retain set, which is what their utility shows. [unlearning.md](unlearning.md) says how models
are trained; `leakatk methods` lists defaults and sources, and each file of `methods/` has its formula.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("leakatk-store"))
    parser.add_argument("--seeds", default="0,1,2", help="seeds to take the mean of (default 0,1,2)")
    args = parser.parse_args()
    store = Store(args.store.resolve())
    runs = []
    for seed in map(int, args.seeds.split(",")):
        runs.append(pipeline.run(experiment_of(seed), store))
        for name, reason in runs[-1].failed.items():
            print(f"seed {seed}: {name} failed: {reason}", file=sys.stderr)
    print(TEXT.format(seeds=args.seeds, table=table(runs)), end="")


def experiment_of(seed: int) -> Experiment:
    """Every method but retrain, which is the retain model's row, in the order of `leakatk methods`; RULE over NPO."""
    document: dict[str, Any] = demo_document(seed, everything=True)
    methods = [
        each
        for each in document["methods"]
        if each["name"] != "retrain" and each.get("base", {}).get("name") != "simnpo"
    ]
    document["methods"] = sorted(methods, key=lambda each: list(METHODS).index(each["name"]))
    changes = {"name": f"methods-{seed}", "numerics": "native", "sampling": {"n": 128}, "leak": {"k": [1, 8, 32, 128]}}
    return parse_experiment(document | changes, "the methods")


def table(runs: list[Results]) -> str:
    """A row a model, over the runs that have it."""
    lines = [
        "| model | greedy | leak@1 | leak@32 | leak@128 | excess@128 | utility | steps | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in (model.name for model in runs[0].models):
        models = [(model, curve) for run in runs for model, curve in run.headline if model.name == name]
        cells = [_spread([model.greedy[curve.group] for model, curve in models])]
        cells += [_interval([curve.at(k) for _, curve in models]) for k in (1, 32, 128)]
        cells.append("" if name == "retain" else _interval([curve.excess_at(128) for _, curve in models]))
        cells.append(_spread([model.utility for model, _ in models if model.utility is not None]))
        cells.append(f"{np.mean([model.steps for model, _ in models]):.0f}")
        cells.append(f"{np.mean([model.seconds for model, _ in models]):.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _interval(values: list[tuple[float, float, float] | None]) -> str:
    there = np.array([each for each in values if each is not None])
    estimate, low, high = there[:, 0].mean(), there[:, 1].min(), there[:, 2].max()
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")


if __name__ == "__main__":
    main()
