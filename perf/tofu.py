"""TOFU's real text end to end: runs an example and writes its tables to a page of the docs.

    python -m perf.tofu small --path FOLDER_OR_HUB_NAME [--store FOLDER]
    python -m perf.tofu gemma --path FOLDER_OR_HUB_NAME --model FOLDER [--store FOLDER] [--methods npo,rmu]

small: examples/tofu-small.yaml for forget10 and forget05, to docs/tofu-small.md. gemma: examples/tofu-gemma.yaml, to
docs/tofu-gemma.md. Stages that are finished in the store are not run again. --methods: of the example's these alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from engine.config.experiment import load_experiment
from engine.pipeline.finish import run_experiment
from engine.reporting.results import ModelResult, Results
from engine.reporting.table import metric_rows, missing_reasons
from engine.robustness.runner import Attacks
from engine.store.store import Store
from perf.report import machine, table

ROOT = Path(__file__).parents[1]
GROUPS = {"forget": "original questions", "forget_paraphrase": "paraphrased questions"}
FINDINGS = "## What this run showed"  # written by hand below the tables; kept when the page is written again


@dataclasses.dataclass(frozen=True)
class Page:
    """One page: its example's name, title, the k shown, what is trained on what, how to read it, the changes of each
    run."""

    example: str
    title: str
    ks: tuple[int, ...]
    text: str
    reading: str
    runs: tuple[tuple[str, ...], ...] = ((),)


COMMON = """\
greedy: ROUGE-L recall of the greedy answers. Excess is over the retain model, which never saw what is to be forgotten:
ROUGE-L recall gives any sentence of the right form a part of its score, the excess does not. Its first interval is for
authors like these (wide, for they are few), its second for these very questions. [What each metric is](metrics.md),
[what the intervals say](statistics.md). One seed."""
CONTROL = "npo-control took as many steps as RULE, without its samples."
PAGES = {
    "small": Page(
        "tofu-small",
        "TOFU from scratch on two cores",
        (1, 8, 32),
        """\
A Llama of three million parameters with a tokenizer of its own learns {limit_authors} of TOFU's authors by heart, from
scratch, questions and paraphrased questions; then it is to forget some of them, trained on the original questions alone
([examples/tofu-small.yaml](../examples/tofu-small.yaml); `make tofu-small` prints the same on the terminal).""",
        """\
The target model should say its authors by heart and the retain model not guess them. Training stops at the first look
at which greedy answers are below train.stop_at_greedy: the steps. Real authors and world facts are left out of model
utility: this model has never heard of them.""",
        (("benchmark.split=forget10",), ("benchmark.split=forget05",)),
    ),
    "gemma": Page(
        "tofu-gemma",
        "TOFU on a pretrained model",
        (1, 4, 16),
        """\
Gemma-3-270M is fine-tuned on the original questions of {limit_authors} of TOFU's authors until it recites them,
then made to forget {forget_authors} of them, all on two CPU cores
([examples/tofu-gemma.yaml](../examples/tofu-gemma.yaml)).""",
        """\
Training of GradDiff, NPO and SimNPO stops at the first look at which greedy answers are below train.stop_at_greedy: the
steps. Utility: TOFU's model utility.""",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("--path", default="locuslab/TOFU", help="TOFU")
    parser.add_argument("--model", help="the pretrained model's folder")
    parser.add_argument("--store", default="leakatk-store")
    parser.add_argument("--methods", help="of the example's methods these alone, by their names in tables, with commas")
    args = parser.parse_args()
    command = f"python -m perf.tofu {args.page} --path FOLDER_OF_TOFU"
    command += " --model FOLDER_OF_GEMMA" if args.model else ""
    command += f" --methods {args.methods}" if args.methods else ""
    page, changes = PAGES[args.page], [f"benchmark.path={args.path}"]
    if args.model:
        changes.append(f"model.path={args.model}")
    results = []
    for run in page.runs:
        experiment = load_experiment(ROOT / "examples" / f"{page.example}.yaml", [*changes, *run])
        if args.methods:
            chosen = [each for each in experiment.methods if experiment.label(each) in args.methods.split(",")]
            experiment = experiment.model_copy(update={"methods": tuple(chosen)})
        results.append(run_experiment(experiment, Store(Path(args.store).resolve()), attacker=Attacks()).results)
    path = ROOT / "docs" / f"{page.example}.md"
    _, found, findings = path.read_text().partition(FINDINGS) if path.exists() else ("", "", "")
    path.write_text(written(page, command, results) + (f"\n{found}{findings}" if found else ""))
    print(path.read_text())


def written(page: Page, command: str, results: Sequence[Results]) -> str:
    """The page in Markdown."""
    first = results[0]
    values = {key: first.benchmark.get(key) for key in ("limit_authors", "forget_authors")}
    n = first.experiment["sampling"]["n"]
    sampled = f"leak@k by {first.core_metric} from {n} samples a prompt at T = 1, p = 1."
    lines = [f"# {page.title}", "", machine(command), ""]
    lines += [page.text.format(**values), "", f"{sampled} {COMMON}", "", page.reading, ""]
    if any(model.role == "control" for result in results for model in result.models):
        lines += [CONTROL, ""]
    for result in results:
        lines += _run(result, page.ks)
    return "\n".join(lines)


def _run(result: Results, ks: tuple[int, ...]) -> list[str]:
    these = {model.name: model for model in result.for_these().models}
    lines = [f"## {result.benchmark['split']}", ""]
    header = ["model", "greedy", *(f"leak@{k}" for k in ks), f"excess@{ks[-1]}, authors", "these questions", "utility"]
    for group, title in GROUPS.items():
        prompts = result.models[0].curve(group, result.core_metric).prompts
        rows = [_row(model, these[model.name], group, result.core_metric, ks) for model in result.models]
        lines += [f"leak@k on the {prompts} {title}:", "", table([*header, "steps"], rows), ""]
    values = [[name, *row] for name, row in metric_rows(result)]
    lines += ["The metrics of TOFU:", "", table(["metric", *(model.name for model in result.models)], values), ""]
    lines += [f"No {', '.join(names)}: {reason}." for reason, names in missing_reasons(result).items()]
    lines += [f"{name} failed: {reason}." for name, reason in result.failed.items()]
    spent = sum(model.seconds for model in result.models)
    return [*lines, f"Training, sampling and scoring: {spent:,.0f} seconds, added up over workers.", ""]


def _row(model: ModelResult, these: ModelResult, group: str, metric: str, ks: tuple[int, ...]) -> list[str]:
    curve = model.curve(group, metric)
    cells = [model.name, f"{model.greedy[group]:.3f}", *(_interval(curve.at(k)) for k in ks)]
    for each in (curve, these.curve(group, metric)):
        cells.append(_interval(each.excess_at(ks[-1])) if model.role != "retain" else "")
    return [*cells, f"{model.utility:.3f}", str(model.steps)]


def _interval(values: tuple[float, float, float] | None) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]" if values is not None else ""


if __name__ == "__main__":
    main()
