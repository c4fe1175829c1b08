"""What looking cheaply first saves a search: tokens and winner beside sampling every trial in full.

Searches the embedded benchmark at random points, then samples every one of the same points in full, with the same
seeds; writes the comparison and the picture of greedy beside leak@k.

    python -m perf.tune --store /tmp/perf-tune
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np

from benchmarks import BENCHMARKS
from engine.experiment import load_experiment
from engine.race import short
from engine.spaces import load_space
from engine.store import Store
from engine.trial import looks, reported
from engine.tune import Search, Trial, search
from engine.tuned import by_greedy, rank_correlation
from engine.tuned_figures import draw
from perf.report import machine, table, write_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "tune-greedy.png")
    args = parser.parse_args()
    store = Store(args.store)
    pairs = {seed: compared(seed, args.trials, store) for seed in args.seeds}
    first = pairs[args.seeds[0]][1]
    draw(first)
    shutil.copy(first.folder / "greedy.png", args.picture)
    write_page("tune", page(pairs, args))


def compared(seed: int, trials: int, store: Store) -> tuple[Search, Search]:
    """The search as it is, and the same points with every trial sampled in full."""
    experiment = load_experiment(ROOT / "examples" / "fictional.yaml", [f"seed={seed}"])
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    space = load_space(
        ROOT / "tune_spaces" / "fictional-npo.yaml", experiment.with_protocol(benchmark.protocol), benchmark
    )
    raced = search(experiment, space.model_copy(update={"search": "random", "trials": trials}), store)
    every = space.model_copy(update={"search": "random", "trials": trials, "rungs": ()})
    setting = dataclasses.replace(raced.setting, space=every)
    full = [Trial(each.id, each.values, reported(list(looks(each.values, setting))[-1])) for each in raced.trials]
    folder = raced.folder.with_name(f"{raced.folder.name}-every-trial-in-full")
    folder.mkdir(exist_ok=True)
    return raced, Search(full, setting, folder, 0.0)


def exhaustive_tokens(full: Search) -> int:
    """Tokens of sampling every trial in full: for those that keep too little, what one sampled in full takes."""
    known = [each.seen["tokens"] for each in full.trials if each.seen["full"]]
    return sum(each.seen["tokens"] if each.seen["full"] else int(np.mean(known)) for each in full.trials)


def page(pairs: dict[int, tuple[Search, Search]], args: argparse.Namespace) -> list[str]:
    """The paragraphs of the result's page."""
    raced, full = pairs[args.seeds[0]]
    names = list(raced.setting.space.parameters)
    stopped = {each.id: each for each in raced.trials}
    seeds = " ".join(map(str, args.seeds))
    return [
        "# A search that looks cheaply first, beside sampling every trial in full",
        machine(f"python -m perf.tune --store STORE --trials {args.trials} --seeds {seeds}"),
        f"tune_spaces/fictional-npo.yaml at {args.trials} random points, leak@128 by exact fact on the half of the "
        "forget prompts that decides, utility at least 0.95 of the target model's. Tokens: all that was generated for "
        "the trials, greedy answers included. All in full: every point that keeps enough, n = 200, without cheaper "
        "looks; one that keeps too little is taken to cost as much as the mean of those.",
        table(
            ("seed", "winner, leak@128", "winner of all in full", "sampled in full", "tokens", "all in full", "ratio"),
            [_savings(seed, *pair) for seed, pair in pairs.items()],
        ),
        "Every point of the first seed, and where the search stopped it:",
        table(
            (*names, "utility", "greedy", "leak@128", "the search stopped it"),
            [_point(each, stopped[each.id], names) for each in sorted(full.trials, key=lambda one: one.seen["value"])],
        ),
        "Greedy beside leak@128 over the points that keep enough, all sampled in full:",
        table(
            ("seed", "trials", "Spearman correlation", "best by greedy: trials, what they leak", "the winner leaks"),
            [_greedy(seed, full) for seed, (_, full) in pairs.items()],
        ),
        "![rank by greedy beside rank by leak@128](../../docs/images/tune-greedy.png)",
    ]


def _savings(seed: int, raced: Search, full: Search) -> list[str]:
    total, count = exhaustive_tokens(full), sum(each.seen["full"] for each in raced.trials)
    of = f"{count} of {len(raced.trials)}"
    ratio = f"{total / raced.tokens:.1f}x"
    return [str(seed), _named(raced.best), _named(full.best), of, f"{raced.tokens:,}", f"{total:,}", ratio]


def _point(each: Trial, stopped: Trial, names: list[str]) -> list[str]:
    point = [short(each.values[name]) for name in names]
    utility = f"{each.seen['utility']:.3f}"
    where = f"{stopped.state}, {stopped.seen['tokens']:,} tokens"
    return [*point, utility, f"{each.seen['greedy']:.3f}", _leak(each) if each.seen["full"] else "", where]


def _greedy(seed: int, full: Search) -> list[str]:
    correlation, count = rank_correlation(full)
    best = [each.seen["leak"] for each in by_greedy(full)]
    leaks = f"{len(best)}: {best[0]:.3f} to {best[-1]:.3f}" if best else ""
    return [str(seed), str(count), f"{correlation:.2f}", leaks, _leak(full.best)]


def _named(trial: Trial | None) -> str:
    return "none" if trial is None else f"{trial.id}, {_leak(trial)}"


def _leak(trial: Trial | None) -> str:
    if trial is None:
        return ""
    return f"{trial.seen['leak']:.3f} [{trial.seen['low']:.3f}, {trial.seen['high']:.3f}]"


if __name__ == "__main__":
    main()
