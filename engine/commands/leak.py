"""`leakatk leak`: the leak@k curve of a scores file, with intervals, bounds, excess over retain and a plan."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from engine.jsonl import JsonObject
    from engine.leak.curve import LeakCurve
    from engine.leak.estimator import Floats
    from engine.reporting.scores import Scores

SHOWN = 5  # malformed lines named one by one, worst prompts in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", type=Path, metavar="SCORES.jsonl", help="scores as `leakatk score` writes them")
    parser.add_argument("--k", metavar="1,2,4,8", help="values of k (default: powers of two up to 128)")
    parser.add_argument("--retain", type=Path, metavar="SCORES.jsonl", help="retain model's scores of the same prompts")
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and bounds (default: 0.95)")
    parser.add_argument(
        "--inference",
        choices=("population", "prompts"),
        default="population",
        help="intervals for prompts (authors, articles) like these, the default, or for these very prompts",
    )
    parser.add_argument(
        "--plan", type=float, metavar="W", help="samples a prompt for +-W at every k; prompts and clusters, too"
    )
    parser.add_argument("--threshold", type=float, metavar="S", help="count scores >= S as leaks (1), others as 0")
    parser.add_argument(
        "--beyond", choices=("beta-binomial",), help="k above the number of samples: by this model, for binary scores"
    )
    parser.add_argument(
        "--generations",
        type=Path,
        metavar="FILE.jsonl",
        help="show the text of the worst samples, from the generations",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="OUT.jsonl",
        help="write each prompt's leak@k with upper bounds, a line a prompt",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the plan and of --beyond (default: 0)")
    parser.add_argument("--json", action="store_true", help="the result alone on stdout, as JSON")


def run(args: argparse.Namespace) -> int:
    from engine.leak.curve import leak_curve
    from engine.reporting.formatting import finite
    from engine.reporting.scores import pair, read_scores

    if not 0 < args.confidence < 1:
        raise UserError(f"--confidence must be between 0 and 1, found {args.confidence}")
    model = read_scores(args.scores)
    retain = read_scores(args.retain) if args.retain else None
    for path, scores in ((args.scores, model), (args.retain, retain)):
        if scores is not None:
            _tell_oddities(path, scores)
    rows, retain_rows = model.rows, pair(model, retain) if retain else None
    if args.threshold is not None:
        rows, retain_rows = _binary(rows, args.threshold), retain_rows and _binary(retain_rows, args.threshold)
    k, beyond_k = _parse_k(args.k), []
    if args.beyond and k:
        fewest = min(map(len, rows))
        k, beyond_k = [value for value in k if value <= fewest], [value for value in k if value > fewest]
    try:
        curve = leak_curve(
            rows, k or None, args.confidence, retain_rows, clusters=model.clusters, inference=args.inference
        )
        result = curve.as_dict() | {"malformed": model.malformed, "rounded": model.rounded}
        result |= _details(model, rows, retain_rows, curve, args)
        if beyond_k:
            result["beyond"] = _beyond(model, rows, beyond_k, args)
    except ValueError as error:
        raise UserError(f"{args.scores}: {error}") from error
    if args.generations is not None:
        _add_texts(result.get("worst", []), args.generations)
    if args.prompts is not None:
        _write_prompts(model.prompt_ids, rows, curve, args)
    if args.json:
        print(json.dumps(finite(result), allow_nan=False))
    else:
        _show(result, args.scores)
    return 0


def _parse_k(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise UserError(f"--k must be integers separated by commas, such as 1,2,4,8; found {text!r}") from error


def _tell_oddities(path: Path, scores: Scores) -> None:
    for number, reason in scores.examples[:SHOWN]:
        print(f"{path}:{number}: line left out: {one_line(reason)}", file=sys.stderr)
    if scores.malformed:
        print(f"{path}: {scores.malformed} malformed line(s) left out in all", file=sys.stderr)
    if scores.rounded:
        print(f"{path}: {scores.rounded} scores beyond 0 or 1 by rounding taken as 0 or 1", file=sys.stderr)


def _binary(rows: list[Floats], threshold: float) -> list[Floats]:
    import numpy as np

    return [np.where(np.isnan(row), np.nan, row >= threshold) for row in rows]


def _beyond(model: Scores, rows: list[Floats], k: list[int], args: argparse.Namespace) -> JsonObject:
    import numpy as np

    from engine.leak.clusters import clusters_of
    from engine.leak.estimator import pad_rows
    from engine.leak.extrapolation import leak_beyond_n

    clusters = clusters_of(model.clusters, len(rows))
    beyond = leak_beyond_n(pad_rows(rows)[0], np.array(k), args.confidence, args.seed, clusters)
    return {
        "model": args.beyond,
        "k": k,
        "leak": beyond.leak.tolist(),
        "low": beyond.low.tolist(),
        "high": beyond.high.tolist(),
        "fit_p_value": beyond.fit_p_value,
        "warning": beyond.warning,
    }


def _details(
    model: Scores,
    rows: list[Floats],
    retain_rows: list[Floats] | None,
    curve: LeakCurve,
    args: argparse.Namespace,
) -> JsonObject:
    """The numbers beside the curve: the noise by its source, the certified bound, the worst prompts, the plan."""
    from engine.leak.bounds import mean_leak_bound
    from engine.leak.clusters import clusters_of
    from engine.leak.estimator import pad_rows, prompt_leak, valid_samples
    from engine.leak.excess import worst_prompts
    from engine.leak.per_prompt import upper_limits
    from engine.leak.variance import noise, plan_samples

    sets = [pad_rows(part)[0] for part in (rows, retain_rows) if part is not None]
    largest = int(curve.k.max())
    kept = valid_samples(*sets) >= largest
    scores_PN, *retain = (scores if kept.all() else scores[kept] for scores in sets)
    clusters = clusters_of(model.clusters, len(kept)).part(kept)
    errors = noise(scores_PN, curve.k, clusters)
    details: JsonObject = {
        "sampling_error": errors.sampling.tolist(),
        "prompt_error": errors.prompts.tolist(),
        "cluster_error": errors.clusters.tolist(),
        "bound": mean_leak_bound(prompt_leak(scores_PN, curve.k), args.confidence).tolist(),
        "prompt_bound": upper_limits(scores_PN, curve.k, args.confidence, together=True).max(axis=0).tolist(),
    }
    if retain:
        ids = [prompt_id for prompt_id, keep in zip(model.prompt_ids, kept, strict=True) if keep]
        details["worst"] = [
            {"prompt_id": ids[worst.index], "excess": worst.excess, "leak": worst.leak, "sample": worst.sample}
            for worst in worst_prompts(scores_PN, retain[0], largest)
        ]
    if args.plan is not None:
        plans = [plan_samples(scores_PN, int(k), args.plan, args.confidence, args.seed, clusters) for k in curve.k]
        details["plan"] = [dataclasses.asdict(plan) for plan in plans]
    return details


def _add_texts(worst: list[JsonObject], path: Path) -> None:
    """Put prompt, reference and worst response beside each of the worst prompts, by prompt id."""
    from engine.jsonl import Reading
    from engine.reporting.generations import read_generations

    wanted = {prompt["prompt_id"]: prompt for prompt in worst}
    for row in read_generations(path, Reading()):
        if (prompt := wanted.get(row.prompt_id)) is not None and prompt["sample"] < len(row.responses):
            prompt |= {"prompt": row.prompt, "reference": row.reference, "response": row.responses[prompt["sample"]]}


def _write_prompts(prompt_ids: list[str], rows: list[Floats], curve: LeakCurve, args: argparse.Namespace) -> None:
    """Each prompt's leak@k, and upper bounds on it: of that prompt alone, and of all prompts at once."""
    from engine.jsonl import atomic_file
    from engine.leak.estimator import pad_rows, prompt_leak, valid_samples
    from engine.leak.per_prompt import upper_limits

    scores_PN = pad_rows(rows)[0]
    alone_PK = upper_limits(scores_PN, curve.k, args.confidence)
    together_PK = upper_limits(scores_PN, curve.k, args.confidence, together=True)
    enough_P = valid_samples(scores_PN) >= curve.k.max()
    with atomic_file(args.prompts) as file:
        for index, prompt_id in enumerate(prompt_ids):
            leak = prompt_leak(scores_PN[index : index + 1], curve.k)[0].tolist() if enough_P[index] else None
            row = {"prompt_id": prompt_id, "k": curve.k.tolist(), "leak": leak, "bound": alone_PK[index].tolist()}
            file.write(json.dumps(row | {"bound_all": together_PK[index].tolist()}) + "\n")


def _show(result: JsonObject, path: Path) -> None:
    from rich.console import Console

    percent = f"{100 * result['confidence']:g} %"
    console = Console(soft_wrap=True)
    console.width = max(console.width, 110)  # as wide as the table, where no terminal says how wide
    console.print(_table(result, f"leak@k of {path.name}, {percent} intervals {_over(result)}", percent))
    console.print(
        f"{result['prompts']} prompts x {result['samples']} samples; mean score {result['mean']:.4f}; "
        f"{result['failed']} samples failed; {result['excluded']} prompts and {result['malformed']} lines left out"
    )
    console.print(f"With {percent} confidence leak@{result['k'][-1]} <= {result['bound'][-1]:.4f}.")
    console.print(
        f"No prompt's own leak@{result['k'][0]} is above {result['prompt_bound'][0]:.4f}, all prompts at once "
        f"({percent}; --prompts writes each)."
    )
    for worst in result.get("worst", [])[:SHOWN]:
        _show_worst(worst, console)
    if beyond := result.get("beyond"):
        for k, leak, low, high in zip(beyond["k"], beyond["leak"], beyond["low"], beyond["high"], strict=True):
            console.print(f"Beyond n, by the {beyond['model']} model: leak@{k} {leak:.4f} ({low:.4f} - {high:.4f})")
        if beyond["warning"]:
            console.print(f"Warning: {beyond['warning']}.")
    for plan in result.get("plan", []):
        console.print(f"+-{plan['half_width']:g} at k = {plan['k']}: {_plan_text(plan, result)}")


def _table(result: JsonObject, title: str, percent: str) -> Table:
    """A row a k: leak@k with its interval and errors, and the excess where there is a retain model."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    errors = ["sampling_error", "prompt_error", *(["cluster_error"] if _clustered(result) else [])]
    headings = ["k", "leak@k", f"{percent} interval", *(name.replace("_", " ") for name in errors)]
    headings += ["excess", f"{percent} interval", "p"] if "excess" in result else []
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, k in enumerate(result["k"]):
        cells = [str(k), f"{result['leak'][row]:.4f}", f"{result['low'][row]:.4f} - {result['high'][row]:.4f}"]
        cells += [_number(result[name][row]) for name in errors]
        if "excess" in result:
            cells.append(f"{result['excess'][row]:+.4f}")
            cells.append(f"{result['excess_low'][row]:+.4f} to {result['excess_high'][row]:+.4f}")
            cells.append(f"{result['excess_p_value'][row]:.4f}")
        table.add_row(*cells)
    return table


def _clustered(result: JsonObject) -> bool:
    return bool(result["clusters"] < result["prompts"])


def _over(result: JsonObject) -> str:
    """What the intervals are about."""
    if result["inference"] == "prompts":
        return "for these very prompts"
    return f"over {result['clusters']} clusters" if _clustered(result) else f"over {result['prompts']} prompts"


def _plan_text(plan: JsonObject, result: JsonObject) -> str:
    parts = [f"{plan['samples']} samples of each of these prompts"]
    if plan["prompts"]:
        of = f"of the same {result['clusters']} clusters" if _clustered(result) else "of them"
        parts.append(f"over prompts like these: {plan['prompts']} {of}")
    if plan["clusters"]:
        parts.append(f"over clusters like these: {plan['clusters']} of them")
    return "; ".join(parts)


def _show_worst(worst: JsonObject, console: Console) -> None:
    """One of the prompts that leak most above the retain model, with its texts where the generations were given."""
    console.print(
        f"Leaks above retain: {worst['prompt_id']} by {worst['excess']:+.3f} (worst sample: {worst['sample']})",
        markup=False,
    )
    if "response" in worst:
        for name in ("prompt", "response", "reference"):
            console.print(f"    {name}: {one_line(str(worst[name]))}", markup=False, highlight=False)


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"
