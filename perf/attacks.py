"""The models of examples/fictional-attacks.yaml under every attack, over seeds, as a table of docs/robustness.md: who
stays forgotten, under what.

    python -m perf.attacks [--store FOLDER] [--seeds 0,1,2] [--write]

Each seed makes other authors, other models and other samples. A second call finds its stages finished. With --write
the table goes into docs/robustness.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from engine.config.experiment import load_experiment
from engine.config.shipped import example_files
from engine.pipeline import run as pipeline
from engine.reporting.attack_table import NO_ATTACK, AttackRow, attack_names, attack_rows
from engine.reporting.results import Results
from engine.robustness.runner import Attacks
from engine.store.store import Store
from perf.report import insert, machine, table

EXAMPLE = "fictional-attacks"
ATTACKS = (
    "{name: quantize, scheme: nf4}",
    "{name: quantize, scheme: int4}",
    "{name: prune, sparsity: 0.3}",
    "{name: interpolate, with: target, alpha: 0.2}",
    "{name: finetune, on: retain, steps: 100}",
    "{name: relearn, share: 0.1, steps: 50}",
    "{name: prompts, families: [paraphrase, prefix, few_shot, instruction, cloze], prefix: [1, 2]}",
)
DOCS = Path(__file__).parents[1] / "docs"
TEXT = """\
leak@{k} after each attack: the median of {count} seeds, their lowest and highest in brackets ({prompts} questions about
{clusters} authors, {n} samples each). Bold: more than the retain model under the same attack in every seed, by the 95 %
interval of the excess. °: uninformative in at least one seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("leakatk-store"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    runs, seconds, store = [], [], Store(args.store.resolve())
    for seed in args.seeds.split(","):
        clock = time.monotonic()
        changes = [f"seed={seed}", f"benchmark.seed={seed}", f"name={EXAMPLE}-{seed}"]
        changes.append(f"attacks=[{', '.join(ATTACKS)}]")
        runs.append(pipeline.run(load_experiment(example_files()[EXAMPLE], changes), store, attacker=Attacks()))
        seconds.append(time.monotonic() - clock)
    print(f"seconds of each seed, what was found finished included: {', '.join(f'{each:.0f}' for each in seconds)}")
    page = "\n\n".join(paragraphs(runs, f"python -m perf.attacks --seeds {args.seeds}"))
    print(page)
    if args.write:
        insert(DOCS / "robustness.md", "attacks", page)


def paragraphs(runs: Sequence[Results], command: str) -> list[str]:
    """The table of leak@k, an attack a row and a model a column, and that of utility."""
    first = runs[0].headline[0][1]
    text = TEXT.format(
        k=first.k[-1],
        count=len(runs),
        prompts=first.prompts,
        clusters=first.clusters,
        n=first.samples,
    )
    names = [model.name for model in runs[0].models]
    rows = [{(row.model, row.attack): row for row in attack_rows(run)} for run in runs]
    attacks = [NO_ATTACK, *attack_names(runs[0])]
    found = [[[each[name, attack] for each in rows if (name, attack) in each] for name in names] for attack in attacks]
    leaks = [[attack, *map(_leak, cells)] for attack, cells in zip(attacks, found, strict=True)]
    useful = [
        [attack, *map(_utility, cells)]
        for attack, cells in zip(attacks, found, strict=True)
        if not attack.startswith("prompts")  # the weights are as they were
    ]
    utility = "Utility, the median of the seeds; asking otherwise leaves it as it is:"
    header = ["attack", *names]
    return [machine(command), text, table(header, leaks), utility, table(header, useful)]


def _leak(rows: Sequence[AttackRow]) -> str:
    if not rows:
        return ""
    values = [row.leak[0] for row in rows]
    middle = f"{statistics.median(values):.2f}"
    if all(row.excess is not None and row.excess[1] > 0 for row in rows):
        middle = f"**{middle}**"
    mark = "°" if any(row.uninformative for row in rows) else ""
    return f"{middle}{mark} ({min(values):.2f} to {max(values):.2f})"


def _utility(rows: Sequence[AttackRow]) -> str:
    return f"{statistics.median(row.utility for row in rows):.2f}" if rows else ""


if __name__ == "__main__":
    main()
