"""What a finished search says: its table, pictures, JSON, the winner's experiment file and the MLflow runs.

A Search and the winner's full Results come in. Knows nothing of how trials were made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from engine.experiment import Experiment
from engine.leak import leak_curve
from engine.race import short
from engine.results import Results
from engine.tune import Search, Trial


def ordered(found: Search) -> list[Trial]:
    """Winner first: full looks by leakage, then what was stopped, then what failed."""
    return sorted(found.trials, key=lambda each: (not each.won, bool(each.seen["failed"]), each.seen["value"], each.id))


def write_best(best: Experiment, found: Search) -> Path:
    """best.yaml in the search's folder, an experiment that runs as it is."""
    import yaml

    path = found.folder / "best.yaml"
    head = f"# The winner of the search of {found.setting.space.method} over {found.folder.name}; it runs as it is.\n"
    path.write_text(head + yaml.safe_dump(best.model_dump(mode="json", exclude_none=True), sort_keys=False))
    return path


def halves(found: Search, rerun: Results, root: Path) -> dict[str, dict[str, list[float]]]:
    """The winner's leak@k and excess over the retain model, [estimate, low, high], on the prompts that decided and on
    the others, which no trial was judged by: a much larger number there is overfitting to the prompts."""
    from engine.evaluate import decoding_name
    from engine.scoring import group_scores
    from engine.trial import deciding

    setting = found.setting
    benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
    chosen = {each.id for each in deciding(benchmark.group(setting.group), setting.experiment.seed)}
    name = f"scores {decoding_name(setting.decoding)} {setting.metric}"
    rows = {model.name: group_scores(root / model.stages[name])[setting.group] for model in rerun.models}
    winner, retain = rows[rerun.models[-1].name], rows.get("retain")
    parts = {}
    for part, wanted in (("decided", True), ("held out", False)):
        index = [number for number, each in enumerate(winner.prompt_ids) if (each in chosen) == wanted]
        if not index:
            continue
        yardstick = retain.scores[index] if retain is not None else None
        confidence, seed = setting.experiment.leak.confidence, setting.experiment.seed
        curve = leak_curve(winner.scores[index], [setting.space.objective.k], confidence, yardstick, seed)
        parts[part] = {"leak": [float(each[0]) for each in (curve.leak, curve.low, curve.high)]}
        if curve.excess is not None and curve.excess_low is not None and curve.excess_high is not None:
            parts[part]["excess"] = [float(each[0]) for each in (curve.excess, curve.excess_low, curve.excess_high)]
    return parts


def rank_correlation(found: Search) -> tuple[float, int]:
    """Spearman's correlation over trials between the greedy score and leak@k, and the number of trials; NaN where one
    of the two does not vary. leak@k of the last look that each trial got."""
    from scipy.stats import spearmanr

    pairs = [(each.seen["greedy"], each.seen["leak"]) for each in found.trials if not each.seen["failed"]]
    greedy, leak = np.array(pairs).reshape(-1, 2).T
    if len(pairs) < 3 or np.ptp(greedy) == 0 or np.ptp(leak) == 0:
        return float("nan"), len(pairs)
    return float(spearmanr(greedy, leak).statistic), len(pairs)


def as_json(found: Search, rerun: Results | None, parts: dict[str, Any]) -> dict[str, Any]:
    """The machine-readable result of a search."""
    from engine.table import as_json as rows

    correlation, trials = rank_correlation(found)
    best = found.best
    return {
        "method": found.setting.space.method,
        "objective": found.setting.space.objective.model_dump(),
        "least_utility": found.setting.least_utility,
        "trials": [{"id": each.id, "values": each.values, "state": each.state, **each.seen} for each in ordered(found)],
        "best": None if best is None else {"id": best.id, "values": best.values},
        "halves": parts,
        "run": rows(rerun) if rerun is not None else None,
        "greedy_rank_correlation": None if np.isnan(correlation) else correlation,
        "compared_trials": trials,
        "tokens": found.tokens,
        "seconds": found.seconds,
    }


def print_search(found: Search, parts: dict[str, Any]) -> None:
    """One row a trial, the winner first; then the winner on both halves of the prompts, and greedy against leak@k."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    space = found.setting.space
    title = f"{space.method}: leak@{space.objective.k} on half of {found.setting.group}; utility at least "
    table = Table(title=f"{title}{found.setting.least_utility:.3f}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("trial", *space.parameters, "n", "k", "leak@k", "greedy", "utility", "tokens", "state"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("trial", "state") else "right")
    for each in ordered(found):
        seen = each.seen
        known = not seen["failed"]
        table.add_row(
            each.id,
            *(short(each.values.get(name, "")) for name in space.parameters),
            str(seen["n"]),
            str(seen["k"]),
            f"{seen['leak']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}]" if known else "",
            f"{seen['greedy']:.3f}" if known else "",
            f"{seen['utility']:.3f}" if known else "",
            f"{seen['tokens']:,}",
            each.state if known else f"failed: {seen['failed'][:60]}",
        )
    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(table)
    for part, numbers in parts.items():
        shown = ", ".join(f"{name} {value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" for name, value in numbers.items())
        console.print(f"winner at k = {space.objective.k} on the prompts {_said(part)}: {shown}", highlight=False)
    correlation, trials = rank_correlation(found)
    if not np.isnan(correlation):
        console.print(
            f"greedy ranks the {trials} trials as leak@k does with Spearman correlation {correlation:.2f}",
            highlight=False,
        )


def _said(part: str) -> str:
    return "that decided" if part == "decided" else "held out"


def draw(found: Search) -> list[Path]:
    """pareto.png: leak@k against utility; parallel.png: every trial as a line over its hyperparameters."""
    from matplotlib.figure import Figure

    trials = [each for each in found.trials if not each.seen["failed"]]
    if not trials:
        return []
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, chosen, color, marker in (
        ("sampled in full", [each for each in trials if each.won], "#0072B2", "o"),
        ("stopped early or utility too low", [each for each in trials if not each.won], "#999999", "x"),
    ):
        points = [(each.seen["utility"], each.seen["leak"]) for each in chosen]
        if points:
            utility, leak = zip(*points, strict=True)
            axes.scatter(utility, leak, color=color, marker=marker, label=label)
    if found.best is not None:
        place = (found.best.seen["utility"], found.best.seen["leak"])
        axes.scatter(*place, s=160, facecolors="none", edgecolors="#D55E00", label="winner")
    axes.axvline(found.setting.least_utility, color="#D55E00", linewidth=1, linestyle=":")
    axes.set(xlabel="utility", ylabel="leak@k at the trial's last look", title=f"{found.setting.space.method}: trials")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(found.folder / "pareto.png", dpi=150)
    return [found.folder / "pareto.png", _parallel(found, trials)]


def _parallel(found: Search, trials: list[Trial]) -> Path:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(found.setting.space.parameters)
    figure = Figure(figsize=(1.6 * (len(names) + 2), 4.2), layout="constrained")
    axes = figure.add_subplot()
    columns = [_scaled(found, name, [each.values.get(name) for each in trials]) for name in names]
    columns.append([each.seen["utility"] for each in trials])
    columns.append([each.seen["leak"] for each in trials])
    colors = colormaps["cividis"]
    for row, each in zip(np.array(columns, dtype=float).T, trials, strict=True):
        axes.plot(row, color=colors(1 - min(each.seen["leak"], 1.0)), linewidth=2.5 if each is found.best else 1)
    axes.set_xticks(range(len(columns)), [*names, "utility", "leak@k"])
    axes.set_ylim(-0.05, 1.05)
    axes.set(ylabel="share of the range", title="every trial; dark lines leak, the thick one won")
    axes.grid(axis="x", alpha=0.5)
    figure.savefig(found.folder / "parallel.png", dpi=150)
    return found.folder / "parallel.png"


def _scaled(found: Search, name: str, values: list[Any]) -> list[float]:
    """Where each value lies in the searched range, 0 to 1; NaN where the parameter was not in play."""
    parameter = found.setting.space.parameters[name]
    if parameter.choice is not None:
        last = max(1, len(parameter.choice) - 1)
        return [parameter.choice.index(value) / last if value in parameter.choice else np.nan for value in values]
    low, high = parameter.corners
    turned = np.log if parameter.loguniform is not None else np.asarray
    return [
        np.nan if value is None else float((turned(value) - turned(low)) / (turned(high) - turned(low)))
        for value in values
    ]


def record_search(found: Search, document: dict[str, Any], pictures: list[Path], root: Path) -> None:
    """A parent run in MLflow with one child a trial. A server that does not answer costs the record, not the search."""
    from engine.record import client_of, experiment_of, log_metrics, log_params, start_run, tracking_uri
    from engine.redact import redact

    try:
        uri = tracking_uri(root)
        client = client_of(uri)
        where = experiment_of(client, uri, root)
        tags = {"leakatk.kind": "search", "leakatk.search": found.folder.name, "leakatk.method": document["method"]}
        for old in client.search_runs([where], f"tags.`leakatk.search` = '{found.folder.name}'", max_results=5000):
            client.delete_run(old.info.run_id)
        parent = start_run(client, where, found.folder.name, tags)
        log_params(client, parent, {"space": found.setting.space.model_dump(mode="json")})
        log_metrics(client, parent, [("tokens_sampled", float(found.tokens), 0), ("seconds", found.seconds, 0)])
        for each in found.trials:
            child = start_run(client, where, each.id, tags | {"leakatk.kind": "trial"}, parent)
            log_params(client, child, each.values)
            names = ("leak", "low", "high", "greedy", "utility", "n", "k", "tokens")
            numbers = [(name, float(each.seen[name]), 0) for name in names if np.isfinite(float(each.seen[name]))]
            log_metrics(client, child, numbers)
            client.set_tag(child, "leakatk.state", each.state)
            client.set_terminated(child, status="FAILED" if each.seen["failed"] else "FINISHED")
        for path in [*pictures, found.folder / "best.yaml", found.folder / "search.json"]:
            if path.exists():
                client.log_artifact(parent, str(path))
        client.set_terminated(parent)
    except Exception as error:  # whatever the server or the network raises
        print(f"leakatk: the search is not in MLflow: {redact(str(error)).splitlines()[0][:200]}", file=sys.stderr)
