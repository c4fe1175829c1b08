"""What a finished search says: its table, its JSON, the winner on both halves of the prompts, and its experiment file.

A Search and the winner's full Results come in. Knows nothing of how trials were run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.base import is_leak_group
from engine.config.experiment import Experiment
from engine.jsonl import JsonObject
from engine.leak.curve import leak_curve
from engine.reporting.formatting import Estimate, finite, interval_text
from engine.reporting.results import ModelResult, Results, scores_stage
from engine.robustness.base import PromptAttack
from engine.robustness.joint import pooled
from engine.search.result import Search, Trial
from engine.search.trial_report import TrialReport, short
from engine.stages.score import GroupScores, group_scores

Halves = dict[str, dict[str, Estimate]]  # part of the prompts -> "leak", "excess" -> estimate with its interval


def ordered(search: Search) -> list[Trial]:
    """Winner first: trials sampled in full by leakage, then those that were stopped, then those that failed."""
    return sorted(
        search.trials,
        key=lambda trial: (not trial.eligible, bool(trial.report.failed), trial.report.value, trial.id),
    )


def write_best(best: Experiment, search: Search) -> Path:
    """best.yaml in the search's folder, an experiment that runs as it is."""
    import yaml

    path = search.folder / "best.yaml"
    head = f"# The winner of the search of {search.setting.space.method} over {search.folder.name}; it runs as it is.\n"
    path.write_text(head + yaml.safe_dump(best.model_dump(mode="json", exclude_none=True), sort_keys=False))
    return path


def halves(search: Search, rerun: Results, root: Path) -> Halves:
    """The winner's leak@k and excess over the retain model on the prompts that decided, and on what no trial was judged
    by: the other half of them, and every other group of forget prompts. A much larger number there is overfitting to
    the prompts."""
    setting = search.setting
    benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
    deciding = {probe.id for probe in setting.deciding(benchmark)}
    rows = {model.name: _scores(search, model, root) for model in rerun.models}
    winner, retain = rows[rerun.models[-1].name], rows.get("retain", {})
    parts: Halves = {}
    for group in sorted(winner, key=lambda name: name != setting.group):
        scored = winner[group]
        if group != setting.group:
            parts[group] = _part(search, scored, retain.get(group), range(len(scored.prompt_ids)), rerun.clusters)
            continue
        inside = [index for index, prompt in enumerate(scored.prompt_ids) if prompt in deciding]
        outside = [index for index, prompt in enumerate(scored.prompt_ids) if prompt not in deciding]
        parts["decided"] = _part(search, scored, retain.get(group), inside, rerun.clusters)
        if outside:
            parts["held out"] = _part(search, scored, retain.get(group), outside, rerun.clusters)
    return parts


def _scores(search: Search, model: ModelResult, root: Path) -> dict[str, GroupScores]:
    """The scores that the objective is taken of, by group: of the model, or of the model after the attack."""
    setting = search.setting
    name = scores_stage(setting.decoding.name, setting.metric)
    if setting.attack is None:
        return group_scores(root / model.stages[name])
    title, asked = setting.attack.title, isinstance(setting.attack, PromptAttack)
    names = [each.attack.startswith(f"{title}-") if asked else each.attack == title for each in model.attacks]
    after = list(itertools.compress(model.attacks, names))
    if not after:  # the attack leaves this model as it is
        return group_scores(root / model.stages[name])
    scores = group_scores(root / after[0].stages[name])
    if asked:
        return {setting.group: pooled(scores)}
    return {group: each for group, each in scores.items() if is_leak_group(group)}


def _part(
    search: Search,
    scored: GroupScores,
    retain: GroupScores | None,
    prompts: Sequence[int],
    clusters: Mapping[str, str],
) -> dict[str, Estimate]:
    experiment, index = search.setting.experiment, list(prompts)
    retain_scores = retain.scores[index] if retain is not None else None
    k = [search.setting.space.objective.k]
    labels = [clusters.get(scored.prompt_ids[prompt]) for prompt in index]
    curve = leak_curve(scored.scores[index], k, experiment.leak.confidence, retain_scores, clusters=labels)
    numbers = {"leak": (float(curve.leak[0]), float(curve.low[0]), float(curve.high[0]))}
    if curve.excess is not None and curve.excess_low is not None and curve.excess_high is not None:
        numbers["excess"] = (float(curve.excess[0]), float(curve.excess_low[0]), float(curve.excess_high[0]))
    return numbers


def rank_correlation(search: Search) -> tuple[float, int]:
    """Spearman's correlation between the greedy score and leak@k over the trials that were sampled in full, and their
    number; NaN where they are fewer than three or one of the two does not vary."""
    from scipy.stats import spearmanr

    pairs = [(trial.report.greedy, trial.report.leak) for trial in search.full]
    greedy, leak = np.array(pairs).reshape(-1, 2).T
    if len(pairs) < 3 or np.ptp(greedy) == 0 or np.ptp(leak) == 0:
        return float("nan"), len(pairs)
    return float(spearmanr(greedy, leak).statistic), len(pairs)


def by_greedy(search: Search) -> list[Trial]:
    """The trials, sampled in full, that a search on greedy answers cannot tell from its best, by rising leak@k."""
    eligible = sorted((trial for trial in search.trials if trial.eligible), key=lambda trial: trial.report.leak)
    best = min((trial.report.greedy for trial in eligible), default=math.nan)
    return [trial for trial in eligible if trial.report.greedy == best]


def greedy_sentence(search: Search) -> str:
    """What going by greedy answers would have meant for the search, in a sentence; empty where nothing can be said."""
    correlation, trials = rank_correlation(search)
    best = by_greedy(search)
    if math.isnan(correlation) or not best:
        return ""
    subject = "1 trial is" if len(best) == 1 else f"{len(best)} trials are"
    first, last = (f"{trial.report.leak:.3f}" for trial in (best[0], best[-1]))
    return (
        f"Spearman correlation of greedy and leak@k over the {trials} trials sampled in full: {correlation:.2f}; "
        f"{subject} best by greedy ({best[0].report.greedy:.3f}), and {'leaks' if len(best) == 1 else 'leak'} "
        f"{first if first == last else f'{first} to {last}'}"
    )


def reason_for_none(search: Search) -> str:
    """Why a search has no winner."""
    failed = [trial.report.failed for trial in search.trials if trial.report.failed]
    if failed and len(failed) == len(search.trials):
        return f"all {len(failed)} trials failed, the first: {failed[0]}"
    wanted = ", ".join(f"{name} {least:.3f}" for name, least in search.setting.least.items())
    return f"no trial of {len(search.trials)} kept {wanted} when sampled in full"


def as_json(search: Search, rerun: Results | None, parts: Halves) -> JsonObject:
    """The machine-readable result of a search; null for what was not measured."""
    from engine.reporting.table import as_json as run_json

    correlation, trials = rank_correlation(search)
    best, greedy = search.best, [trial.report.leak for trial in by_greedy(search)]
    document: JsonObject = {
        "method": search.setting.space.method,
        "objective": search.setting.space.objective.model_dump(),
        "least": dict(search.setting.least),
        "trials": [
            {"id": trial.id, "values": trial.values, "state": trial.state, **trial.report.as_dict()}
            for trial in ordered(search)
        ],
        "best": None if best is None else {"id": best.id, "values": best.values},
        "front": [trial.id for trial in search.front],
        "halves": parts,
        "run": run_json(rerun) if rerun is not None else None,
        "greedy_rank_correlation": correlation,
        "compared_trials": trials,
        "best_by_greedy": {"trials": len(greedy), "leak": [greedy[0], greedy[-1]]} if greedy else None,
        "tokens": search.tokens,
        "seconds": search.seconds,
    }
    return {key: finite(value) for key, value in document.items()}


def print_search(search: Search, parts: Halves) -> None:
    """One row a trial, the winner first; then the winner on both halves of the prompts, and greedy against leak@k."""
    from engine.reporting.terminal import plain_table, wide_console

    space = search.setting.space
    kept = ", ".join(f"{name} at least {least:.3f}" for name, least in search.setting.least.items())
    objective = f"{search.setting.objective} on half of {search.setting.group}"
    table = plain_table(f"{space.method}: {objective}; {kept}; * Pareto front")
    for name in ("trial", *space.parameters, "n", "k", "leak@k", "greedy", "utility", "tokens", "state"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("trial", "state") else "right")
    front = {trial.id for trial in search.front}
    for trial in ordered(search):
        table.add_row(
            trial.id + ("*" if trial.id in front else ""),
            *(short(trial.values.get(name, "")) for name in space.parameters),
            *_cells(trial.report),
            f"failed: {trial.report.failed[:60]}" if trial.report.failed else trial.state,
        )
    console = wide_console(220)
    console.print(table)
    for part, numbers in parts.items():
        shown = ", ".join(f"{name} {interval_text(estimate)}" for name, estimate in numbers.items())
        console.print(f"winner's {search.setting.objective} on {part_name(part)}: {shown}", highlight=False)
    if sentence := greedy_sentence(search):
        console.print(sentence, highlight=False)


def _cells(report: TrialReport) -> list[str]:
    """n, k, leak@k, greedy, utility and tokens as the table shows them."""
    leak = interval_text((report.leak, report.low, report.high)) if report.n else ""
    if not report.n and report.low > 0:
        leak = f"at least {report.low:.3f}"
    measured = ("" if math.isnan(value) else f"{value:.3f}" for value in (report.greedy, report.utility))
    return [str(report.n), str(report.k), leak, *measured, f"{report.tokens:,}"]


def part_name(part: str) -> str:
    """A part of the prompts in words."""
    words = {"decided": "the half of the prompts that decided", "held out": "the half held out"}
    return words.get(part, f"the group {part}, which decided nothing")
