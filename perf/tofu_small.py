"""Runs examples/tofu-small.yaml and writes its table to docs/tofu-small.md.

python -m perf.tofu_small --path FOLDER_OR_HUB_NAME [--store FOLDER]; finished stages in the store are not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tofu-small.md"
GROUPS = {"forget": "original questions", "forget_paraphrase": "paraphrased questions"}
KS = (1, 8, 32)


def main() -> None:
    from engine import pipeline
    from engine.experiment import load_experiment
    from engine.store import Store

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default="locuslab/TOFU")
    parser.add_argument("--store", default="leakatk-store")
    arguments = parser.parse_args()
    experiment = load_experiment(ROOT / "examples" / "tofu-small.yaml", [f"benchmark.path={arguments.path}"])
    PAGE.write_text(page(pipeline.run(experiment, Store(Path(arguments.store).resolve()))))
    print(PAGE.read_text())


def page(results: Any) -> str:
    """The page in Markdown."""
    options = results.experiment["benchmark"]
    spent = sum(model.seconds for model in results.models)
    lines = [
        "# TOFU from scratch on two cores",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; `python -m perf.tofu_small --path FOLDER_OF_TOFU` (`make tofu-small` prints the "
        "same as tables on the terminal).",
        "",
        f"A Llama of three million parameters with a tokenizer of its own learns {options['limit_authors']} of TOFU's "
        "authors by heart, from scratch, questions and paraphrased questions; then it is to forget "
        f"{options['split'].removeprefix('forget')}% of them, trained on the original questions alone "
        f"([examples/tofu-small.yaml](../examples/tofu-small.yaml)). leak@k by {results.core_metric} from "
        f"{results.experiment['sampling']['n']} samples a prompt at T = 1, p = 1, with {results.confidence:.0%} "
        "intervals over prompts; excess is over the retain model, which never saw what is to be forgotten. ROUGE-L "
        "recall gives a part of its score to any sentence of the right form, so it is the excess that tells. One seed.",
        "",
    ]
    for group, title in GROUPS.items():
        lines += [
            f"## On the {title}",
            "",
            f"| model | greedy | {' | '.join(f'leak@{k}' for k in KS)} | excess@{KS[-1]} | utility | steps |",
            f"|{'---|' * (5 + len(KS))}",
        ]
        lines += [_row(model, group, results.core_metric) for model in results.models]
        lines.append("")
    lines.append(
        "Utility is the harmonic mean of probability, ROUGE-L recall and truth ratio on the retain questions. "
        f"Training, sampling and scoring took {spent:,.0f} seconds over all workers; the machine had other work too."
    )
    return "\n".join(lines) + "\n"


def _row(model: Any, group: str, metric: str) -> str:
    curve = model.curve(group, metric)
    excess = curve.excess_at(KS[-1]) if model.role != "retain" else None
    cells = [model.name, f"{model.greedy[group]:.3f}", *(_interval(curve.at(k)) for k in KS), _interval(excess)]
    return f"| {' | '.join([*cells, f'{model.utility:.3f}', str(model.steps)])} |"


def _interval(values: tuple[float, float, float] | None) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]" if values is not None else ""


if __name__ == "__main__":
    main()
