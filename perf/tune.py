"""What a search saves by sampling little first: tokens and winner beside sampling every trial in full.

Replays the selection of finalists on the samples of a finished search whose trials were all sampled in full
(`rungs: []`): the first n samples of a prompt are what a rung of n would have drawn, so tokens and winner are exact.

    python -m perf.tune STORE/tune/NAME
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from engine.cluster.units import read_units
from engine.leak.estimator import Floats, prompt_leak
from engine.search.final_selection import sample_finalists
from engine.search.prompt_split import rank
from engine.search.space import TRAIN, Rung
from engine.search.trial_evaluation import FEW, predict
from engine.search.trial_report import LeakEstimate, TrialReport, short
from engine.stages.score import group_scores
from perf.report import machine, table, write_page

LADDERS = ((4, 16, 64), (8, 32))


@dataclasses.dataclass(frozen=True)
class Known:
    """A trial that was sampled in full: its report, scores and tokens of each sample [prompts, n], and the tokens of
    its greedy answers: to the prompts that decide, to the few prompts of a first estimate of utility, to all."""

    report: dict[str, Any]
    scores: Floats
    tokens: Floats
    deciding: int
    few: int
    kept: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path, help="folder of the search, below the store")
    args = parser.parse_args()
    found = json.loads((args.search / "search.json").read_text())
    root = args.search.resolve().parents[1]
    k = found["objective"]["k"]
    trials = {each["id"]: known(root, each) for each in found["trials"] if each["full"]}
    write_page("tune", page(found, trials, k))


def known(root: Path, report: dict[str, Any]) -> Known:
    """The stages of one trial, found by what they were made from."""
    trained = next(
        each["fingerprint"]
        for each in manifests(root / "train")
        if all(point(each["inputs"], name) == value for name, value in report["values"].items())
    )
    sampled = [each for each in manifests(root / "sample") if each["inputs"]["model"] == trained]
    greedy = sorted((each for each in sampled if each["inputs"]["n"] == 1), key=lambda each: each["facts"]["prompts"])
    full = min((each for each in sampled if each["inputs"]["n"] > 100), key=lambda each: each["facts"]["prompts"])
    scored = next(each for each in manifests(root / "score") if each["inputs"]["generations"] == full["fingerprint"])
    (groups,) = group_scores(root / "score" / scored["fingerprint"][:20]).values()
    table_ = read_units(root / "sample" / full["fingerprint"][:20], ["tokens"])
    tokens = np.asarray(table_["tokens"]).reshape(groups.scores.shape)
    return Known(
        report,
        groups.scores,
        tokens,
        deciding=greedy[0]["facts"]["tokens"],
        few=few_tokens(root / "sample" / greedy[-1]["fingerprint"][:20]),
        kept=greedy[-1]["facts"]["tokens"],
    )


@functools.cache
def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/manifest.json"))]


def point(inputs: dict[str, Any], name: str) -> Any:
    """A searched hyperparameter of a training."""
    return inputs["settings" if name.startswith(TRAIN) else "method"].get(name.removeprefix(TRAIN))


def few_tokens(folder: Path) -> int:
    """Tokens of the greedy answers that a first estimate of utility takes."""
    rows = read_units(folder, ["prompt_id", "group", "tokens"]).to_pylist()
    utility = BENCHMARKS["fictional"].load().protocol.utility_group
    asked = sorted((each for each in rows if each["group"] == utility), key=lambda each: rank(0, each["prompt_id"]))
    return sum(each["tokens"] for each in asked[:FEW])


def replayed(trials: dict[str, Known], ladder: Sequence[int], k: int) -> tuple[dict[str, TrialReport], int]:
    """The last reports, and all tokens that the search takes with this ladder of rungs."""
    whole = next(iter(trials.values())).scores.shape[1]
    spent = 0

    def sample(name: str, rung: Rung) -> TrialReport:
        nonlocal spent
        one = trials[name]
        spent += int(one.tokens[:, : rung.n].sum()) + (one.kept if rung.n == whole else 0)
        first = np.zeros_like(one.scores)
        first[:, : rung.n] = one.scores[:, : rung.n]
        bound = float(prompt_leak(first, np.array([k])).mean())
        guess = max(bound, predict(one.scores[:, : rung.n], bound, k))
        full = rung.n == whole
        report = TrialReport.of(LeakEstimate(rung.n, min(k, rung.n), bound, 0.0, 1.0, bound, guess))
        return dataclasses.replace(report, full=full, feasible=one.report["feasible"] or not full)

    spent += sum(one.deciding + one.few for one in trials.values())
    first = {name: sample(name, Rung(n=ladder[0])) for name in trials}
    return sample_finalists(first, [*(Rung(n=n) for n in ladder), Rung(n=whole)], sample), spent


def page(found: dict[str, Any], trials: dict[str, Known], k: int) -> list[str]:
    """The paragraphs of the result's page."""
    total = sum(int(one.tokens.sum()) + one.deciding + one.kept for one in trials.values())
    winner = min((one.report["leak"], name) for name, one in trials.items() if one.report["feasible"])
    rows, last = [], {}
    for ladder in LADDERS:
        reports, spent = replayed(trials, ladder, k)
        last[ladder] = reports
        full = {name: each.leak for name, each in reports.items() if each.full and each.feasible}
        best = min((leak, name) for name, leak in full.items())
        same = "the same" if best[1] == winner[1] else f"{best[1]}, {best[0]:.3f}"
        count = f"{sum(each.full for each in reports.values())} of {len(trials)}"
        rows.append([", ".join(map(str, ladder)), same, count, f"{spent:,}", f"{total / spent:.1f}x"])
    names = list(next(iter(trials.values())).report["values"])
    return [
        "# A search that samples little first, beside sampling every trial in full",
        machine("python -m perf.tune STORE/tune/NAME"),
        f"{len(trials)} trials of tune_spaces/fictional-npo.yaml, chosen by TPE and all sampled in full: leak@{k} by "
        "exact fact from 200 samples of each of the 36 forget prompts that decide. The selection of finalists is "
        "replayed on the first n of those samples. Tokens: all that is generated for the trials, greedy answers for "
        "utility included. "
        f"All in full: {total:,} tokens; the winner is {winner[1]} with {winner[0]:.3f}.",
        table(("rungs", "winner", "sampled in full", "tokens", "fewer by"), rows),
        f"Every trial, and where rungs {', '.join(map(str, LADDERS[0]))} leave it:",
        table(
            (*names, "utility", "greedy", f"leak@{k}", "samples a prompt"),
            [_row(one, last[LADDERS[0]][name], names) for name, one in sorted(trials.items(), key=_leak_of)],
        ),
        f"Greedy beside leak@{k}: Spearman correlation {found['greedy_rank_correlation']:.2f}. By greedy answers "
        f"{len(_best_greedy(trials))} trials are best alike, with none that leaks; they leak "
        f"{_span(_best_greedy(trials))} when they are sampled.",
        "![rank by greedy beside rank by leak@128](../../docs/images/tune-greedy.png)",
    ]


def _leak_of(item: tuple[str, Known]) -> float:
    return float(item[1].report["leak"])


def _row(one: Known, last: TrialReport, names: list[str]) -> list[str]:
    report = one.report
    leak = f"{report['leak']:.3f} [{report['low']:.3f}, {report['high']:.3f}]"
    numbers = [f"{report['utility']:.3f}", f"{report['greedy']:.3f}", leak, str(last.n)]
    return [*(short(report["values"][name]) for name in names), *numbers]


def _best_greedy(trials: dict[str, Known]) -> list[float]:
    least = min(one.report["greedy"] for one in trials.values())
    return [one.report["leak"] for one in trials.values() if one.report["greedy"] == least]


def _span(leaks: list[float]) -> str:
    return f"{min(leaks):.3f} to {max(leaks):.3f}"


if __name__ == "__main__":
    main()
