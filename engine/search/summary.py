"""What a finished search says: its table, its JSON, the winner on both halves of the prompts, and its experiment file.

A Search and the winner's full Results come in. Knows nothing of how trials were made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from engine.config.experiment import Experiment
from engine.leak.estimator import leak_curve
from engine.reporting.results import Results
from engine.search.scheduler import plain, short
from engine.search.trial_evaluation import deciding
from engine.search.tuner import Search, Trial
from engine.stages.score import GroupScores, group_scores

Interval = list[float]  # estimate, low, high


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


def halves(found: Search, rerun: Results, root: Path) -> dict[str, dict[str, Interval]]:
    """The winner's leak@k and excess over the retain model on the prompts that decided, and on what no trial was judged
    by: the other half of them, and every other group of forget prompts. A much larger number there is overfitting to
    the prompts."""
    setting = found.setting
    benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
    chosen = {each.id for each in deciding(benchmark.group(setting.group), setting.experiment.seed)}
    name = f"scores {setting.decoding.name} {setting.metric}"
    rows = {model.name: group_scores(root / model.stages[name]) for model in rerun.models}
    winner, retain = rows[rerun.models[-1].name], rows.get("retain", {})
    parts = {}
    for group in sorted(winner, key=lambda each: each != setting.group):
        scored = winner[group]
        ids = scored.prompt_ids
        if group != setting.group:
            parts[group] = _part(found, scored, retain.get(group), list(range(len(ids))))
            continue
        parts["decided"] = _part(
            found, scored, retain.get(group), [at for at, each in enumerate(ids) if each in chosen]
        )
        if others := [at for at, each in enumerate(ids) if each not in chosen]:
            parts["held out"] = _part(found, scored, retain.get(group), others)
    return parts


def _part(found: Search, scored: GroupScores, retain: GroupScores | None, index: list[int]) -> dict[str, Interval]:
    experiment = found.setting.experiment
    yardstick = retain.scores[index] if retain is not None else None
    k = [found.setting.space.objective.k]
    curve = leak_curve(scored.scores[index], k, experiment.leak.confidence, yardstick, experiment.seed)
    numbers = {"leak": [float(each[0]) for each in (curve.leak, curve.low, curve.high)]}
    if curve.excess is not None and curve.excess_low is not None and curve.excess_high is not None:
        numbers["excess"] = [float(each[0]) for each in (curve.excess, curve.excess_low, curve.excess_high)]
    return numbers


def rank_correlation(found: Search) -> tuple[float, int]:
    """Spearman's correlation between the greedy score and leak@k over the trials that were sampled in full, and their
    number; NaN where they are fewer than three or one of the two does not vary."""
    from scipy.stats import spearmanr

    pairs = [(each.seen["greedy"], each.seen["leak"]) for each in found.trials if each.seen["full"]]
    greedy, leak = np.array(pairs).reshape(-1, 2).T
    if len(pairs) < 3 or np.ptp(greedy) == 0 or np.ptp(leak) == 0:
        return float("nan"), len(pairs)
    return float(spearmanr(greedy, leak).statistic), len(pairs)


def by_greedy(found: Search) -> list[Trial]:
    """The trials, sampled in full, that a search on greedy answers cannot tell from its best, by rising leak@k."""
    won = sorted((each for each in found.trials if each.won), key=lambda each: each.seen["leak"])
    return [each for each in won if each.seen["greedy"] == min(one.seen["greedy"] for one in won)]


def said_of_greedy(found: Search) -> str:
    """What going by greedy answers would have meant for the search, in a sentence; empty where nothing can be said."""
    correlation, trials = rank_correlation(found)
    best = by_greedy(found)
    if np.isnan(correlation) or not best:
        return ""
    many = "1 trial is" if len(best) == 1 else f"{len(best)} trials are"
    first, last = (f"{each.seen['leak']:.3f}" for each in (best[0], best[-1]))
    return (
        f"Spearman correlation of greedy and leak@k over the {trials} trials sampled in full: {correlation:.2f}; "
        f"{many} best by greedy ({best[0].seen['greedy']:.3f}), and {'leaks' if len(best) == 1 else 'leak'} "
        f"{first if first == last else f'{first} to {last}'}"
    )


def reason_for_none(found: Search) -> str:
    """Why a search has no winner."""
    failed = [each.seen["failed"] for each in found.trials if each.seen["failed"]]
    if failed and len(failed) == len(found.trials):
        return f"all {len(failed)} trials failed, the first: {failed[0]}"
    wanted = ", ".join(f"{name} {least:.3f}" for name, least in found.setting.least.items())
    return f"no trial of {len(found.trials)} kept {wanted} through a full look"


def as_json(found: Search, rerun: Results | None, parts: dict[str, Any]) -> dict[str, Any]:
    """The machine-readable result of a search; null for what was not measured."""
    from engine.reporting.table import as_json as rows

    correlation, trials = rank_correlation(found)
    best, greedy = found.best, [each.seen["leak"] for each in by_greedy(found)]
    document = {
        "method": found.setting.space.method,
        "objective": found.setting.space.objective.model_dump(),
        "least": dict(found.setting.least),
        "trials": [{"id": each.id, "values": each.values, "state": each.state, **each.seen} for each in ordered(found)],
        "best": None if best is None else {"id": best.id, "values": best.values},
        "front": [each.id for each in found.front],
        "halves": parts,
        "run": rows(rerun) if rerun is not None else None,
        "greedy_rank_correlation": correlation,
        "compared_trials": trials,
        "best_by_greedy": {"trials": len(greedy), "leak": [greedy[0], greedy[-1]]} if greedy else None,
        "tokens": found.tokens,
        "seconds": found.seconds,
    }
    return dict(plain(document))


def print_search(found: Search, parts: dict[str, Any]) -> None:
    """One row a trial, the winner first; then the winner on both halves of the prompts, and greedy against leak@k."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    space = found.setting.space
    kept = ", ".join(f"{name} at least {least:.3f}" for name, least in found.setting.least.items())
    title = f"{space.method}: leak@{space.objective.k} on half of {found.setting.group}; {kept}; * Pareto front"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("trial", *space.parameters, "n", "k", "leak@k", "greedy", "utility", "tokens", "state"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("trial", "state") else "right")
    front = {each.id for each in found.front}
    for each in ordered(found):
        table.add_row(
            each.id + ("*" if each.id in front else ""),
            *(short(each.values.get(name, "")) for name in space.parameters),
            *_row(each),
            each.state if not each.seen["failed"] else f"failed: {each.seen['failed'][:60]}",
        )
    console = Console(width=None if sys.stdout.isatty() else 220, highlight=False)
    console.print(table)
    for part, numbers in parts.items():
        shown = ", ".join(f"{name} {value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]" for name, value in numbers.items())
        console.print(f"winner at k = {space.objective.k} on {said(part)}: {shown}")
    if sentence := said_of_greedy(found):
        console.print(sentence)


def _row(each: Trial) -> list[str]:
    """n, k, leak@k, greedy, utility and tokens as the table shows them."""
    seen = each.seen
    known = {key: f"{seen[key]:.3f}" if seen[key] == seen[key] else "" for key in ("greedy", "utility")}
    leak = f"{seen['leak']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}]" if seen["n"] else ""
    if not seen["n"] and seen["low"] > 0:
        leak = f"at least {seen['low']:.3f}"
    return [str(seen["n"]), str(seen["k"]), leak, known["greedy"], known["utility"], f"{seen['tokens']:,}"]


def said(part: str) -> str:
    """A part of the prompts in words."""
    words = {"decided": "the half of the prompts that decided", "held out": "the half held out"}
    return words.get(part, f"the group {part}, which decided nothing")
