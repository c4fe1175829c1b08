"""Runs examples/tofu-small.yaml for forget10 and forget05 and writes its tables to docs/tofu-small.md.

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
SPLITS = ("forget10", "forget05")
GROUPS = {"forget": "original questions", "forget_paraphrase": "paraphrased questions"}
KS = (1, 8, 32)
READING = (
    "How to read it: the target model should say its authors by heart and the retain model not guess them. Training "
    "stops at the first look at which greedy answers are below train.stop_at_greedy: the steps. npo-control took as "
    "many steps as RULE, without its samples. Real authors and world facts are left out of model utility: this model "
    "has never heard of them. ROUGE-L recall gives any sentence of the right form a part of its score; the excess does "
    "not."
)
FINDINGS = "## What this run showed"  # written by hand below the tables; kept when the page is written again


def main() -> None:
    from engine.config.experiment import load_experiment
    from engine.pipeline import run as pipeline
    from engine.store.store import Store

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default="locuslab/TOFU")
    parser.add_argument("--store", default="leakatk-store")
    arguments = parser.parse_args()
    _, found, text = PAGE.read_text().partition(FINDINGS) if PAGE.exists() else ("", "", "")
    findings = f"\n{found}{text}" if found else ""
    results = []
    for split in SPLITS:
        changes = [f"benchmark.path={arguments.path}", f"benchmark.split={split}"]
        experiment = load_experiment(ROOT / "examples" / "tofu-small.yaml", changes)
        results.append(pipeline.run(experiment, Store(Path(arguments.store).resolve())))
        PAGE.write_text(page(results) + findings)
    print(PAGE.read_text())


def page(results: list[Any]) -> str:
    """The page in Markdown."""
    first = results[0]
    sampling = first.experiment["sampling"]
    lines = [
        "# TOFU from scratch on two cores",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; `python -m perf.tofu_small --path FOLDER_OF_TOFU` writes this page, `make "
        "tofu-small` runs the same and prints it as tables on the terminal.",
        "",
        f"A Llama of three million parameters with a tokenizer of its own learns {first.benchmark['limit_authors']} of "
        "TOFU's authors by heart, from scratch, questions and paraphrased questions; then it is to forget some of "
        "them, trained on the original questions alone ([examples/tofu-small.yaml](../examples/tofu-small.yaml)). "
        f"leak@k by {first.core_metric} from {sampling['n']} samples a prompt at T = 1, p = 1, with "
        f"{first.confidence:.0%} intervals over prompts; excess is over the retain model, which never saw what is to "
        "be forgotten. [What each metric is](metrics.md). One seed.",
        "",
    ]
    lines += [READING, ""]
    for result in results:
        lines += _split(result)
    return "\n".join(lines)


def _split(result: Any) -> list[str]:
    from engine.reporting.table import metric_rows, missing_reasons

    lines = [f"## {result.benchmark['split']}", ""]
    for group, title in GROUPS.items():
        prompts = result.models[0].curve(group, result.core_metric).prompts
        lines += [
            f"leak@k on the {prompts} {title}:",
            "",
            f"| model | greedy | {' | '.join(f'leak@{k}' for k in KS)} | excess@{KS[-1]} | utility | steps |",
            f"|{'---|' * (5 + len(KS))}",
        ]
        lines += [_row(model, group, result.core_metric) for model in result.models]
        lines.append("")
    lines += ["The metrics of TOFU:", "", f"| metric | {' | '.join(model.name for model in result.models)} |"]
    lines.append(f"|{'---|' * (1 + len(result.models))}")
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in metric_rows(result)]
    lines.append("")
    lines += [f"No {', '.join(names)}: {reason}." for reason, names in missing_reasons(result).items()]
    lines += [f"{name} failed: {reason}." for name, reason in result.failed.items()]
    spent = sum(model.seconds for model in result.models)
    lines += [f"Training, sampling and scoring: {spent:,.0f} seconds, added up over workers on a shared machine.", ""]
    return lines


def _row(model: Any, group: str, metric: str) -> str:
    curve = model.curve(group, metric)
    excess = curve.excess_at(KS[-1]) if model.role != "retain" else None
    cells = [model.name, f"{model.greedy[group]:.3f}", *(_interval(curve.at(k)) for k in KS), _interval(excess)]
    return f"| {' | '.join([*cells, f'{model.utility:.3f}', str(model.steps)])} |"


def _interval(values: tuple[float, float, float] | None) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]" if values is not None else ""


if __name__ == "__main__":
    main()
