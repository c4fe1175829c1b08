"""`leakatk compare`: runs side by side as a table, a picture, CSV and LaTeX."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.jsonl import JsonObject
    from engine.reporting.compare import Comparison, Row

COLUMNS = (
    *("model", "run", "role", "greedy", "leak", "leak_low", "leak_high", "excess", "excess_low", "excess_high"),
    *("difference", "difference_low", "difference_high", "paired", "significant", "utility", "tokens", "seconds"),
)
FORMATS = ("png", "pdf", "svg")
LATEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders (`leakatk run` prints them)")
    parser.add_argument("--k", type=int, metavar="K", help="compare at this k (default: the largest that all have)")
    parser.add_argument("--group", metavar="GROUP", help="compare on this group of prompts (default: the runs' own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("leakatk-compare"),
        metavar="FOLDER",
        help="where picture (.png .pdf .svg), compare.csv and compare.tex go (default ./leakatk-compare)",
    )
    parser.add_argument("--json", action="store_true", help="the comparison as JSON, alone on stdout")


def run(args: argparse.Namespace) -> int:
    from engine.reporting.compare import compare
    from engine.reporting.run_folder import run_path

    comparison = compare([run_path(run) for run in args.runs], args.k, args.group)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        files = _write(comparison, args.out)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror}); choose another folder") from error
    if args.json:
        print(json.dumps(_as_json(comparison) | {"files": [str(path) for path in files]}))
        return 0
    _show(comparison)
    for path in files:
        print(path)
    return 0


def _as_json(comparison: Comparison) -> JsonObject:
    settings = ("k", "ranked_by", "core_metric", "leak_group", "confidence", "best", "notes")
    return {name: getattr(comparison, name) for name in settings} | {
        "models": [_record(row) for row in comparison.rows]
    }


def _record(row: Row) -> JsonObject:
    """One model as plain values by the names of COLUMNS, None where there is nothing to say."""
    difference = row.difference
    of_difference = (
        (difference.estimate, difference.low, difference.high, difference.paired, difference.significant)
        if difference
        else (None,) * 5
    )
    values = (row.label, row.run, row.model.role, row.greedy, *row.leak, *(row.excess or (None,) * 3), *of_difference)
    return dict(zip(COLUMNS, (*values, row.model.utility, row.model.tokens, row.model.seconds), strict=True))


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    """The picture in three formats, the table as CSV and as LaTeX."""
    import csv
    import io

    from engine.reporting.figures import above_retain, curve_figure, lines_of, save
    from engine.store.files import write_atomic

    lines = lines_of((row.label, row.model.role, row.curve) for row in comparison.rows)
    title = f"the worst of k samples on {comparison.leak_group.replace('_', ' ')} prompts"
    figures = {"compare": curve_figure(lines, title, comparison.core_metric)}
    if comparison.ranked_by == "excess":
        title = "leak above the retain model's"
        figures["compare_excess"] = curve_figure(above_retain(lines), title, comparison.core_metric, excess=True)
    files = [save(figure, folder / f"{name}.{suffix}") for name, figure in figures.items() for suffix in FORMATS]
    text = io.StringIO()
    writer = csv.DictWriter(text, ("k", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"k": comparison.k} | _record(row) for row in comparison.rows)
    for name, content in (("compare.csv", text.getvalue()), ("compare.tex", _latex(comparison))):
        write_atomic(folder / name, content)
        files.append(folder / name)
    return files


def _latex(comparison: Comparison) -> str:
    """A booktabs table; models that are not significantly worse than the best carry a dagger."""
    from engine.reporting.formatting import interval_text, number_text

    head = f"model & greedy & leak@{comparison.k} & excess@{comparison.k} & utility"
    lines = [r"% needs \usepackage{booktabs}", r"\begin{tabular}{lrrrr}", r"\toprule", rf"{head} \\", r"\midrule"]
    for row in comparison.rows:
        name = row.label.translate(LATEX)
        name = rf"\textbf{{{name}}}" if row.label == comparison.best else name
        mark = r"$^\dagger$" if row.difference is not None and not row.difference.significant else ""
        leak, excess = interval_text(row.leak), interval_text(row.excess, "")
        numbers = (number_text(row.greedy), leak, excess, number_text(row.model.utility))
        lines.append(" & ".join((name + mark, *numbers)) + r" \\")
    percent = f"{100 * comparison.confidence:g}"
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines.append(
        f"% {percent}% intervals {comparison.scope}; dagger: not significantly different from the best (bold)."
    )
    return "\n".join(lines) + "\n"


def _show(comparison: Comparison) -> None:
    from engine.reporting.formatting import interval_text, number_text
    from engine.reporting.terminal import plain_table, wide_console

    title = (
        f"{comparison.core_metric} on {comparison.leak_group}, {comparison.confidence:.0%} intervals "
        f"{comparison.scope}, least {comparison.ranked_by} first"
    )
    table = plain_table(title)
    runs = len({row.run for row in comparison.rows}) > 1
    headings = ["model", "run"] if runs else ["model"]
    headings += [
        "greedy",
        f"leak@{comparison.k}",
        f"excess@{comparison.k}",
        f"more than {comparison.best}",
        "",
        "utility",
    ]
    for heading in headings:
        left = heading in ("model", "run", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=left)
    for row in comparison.rows:
        mark, style = _mark(row, comparison.best)
        difference = row.difference
        shown = (difference.estimate, difference.low, difference.high) if difference else None
        cells = [row.label, row.run] if runs else [row.label]
        cells += [
            number_text(row.greedy),
            *(interval_text(estimate, "") for estimate in (row.leak, row.excess, shown)),
            mark,
        ]
        table.add_row(*cells, number_text(row.model.utility), style=style)
    console = wide_console()
    console.print(table)
    if any(row.difference is not None and not row.difference.significant for row in comparison.rows):
        console.print("~ not significantly different from the best: the difference's interval holds 0.")
    for note in comparison.notes:
        console.print(note, markup=False, highlight=False)


def _mark(row: Row, best: str) -> tuple[str, str]:
    """The mark beside a row, and its style: the best, those that may be as good, those that are worse."""
    if row.label == best:
        return "best", "bold"
    if row.difference is None:
        return "", "dim"
    return ("", "") if row.difference.significant else ("~", "")
