"""Measures how often the intervals hold the truth, and how wide they are beside an oracle's.

    python -m perf.coverage [--trials 2000] [--image docs/images/coverage.png] > perf/results/coverage.md

Simulated prompts: the logit of a prompt's chance to leak is a base, plus an effect of its author, plus one of its own
(sd 1); 200 samples each. Binary scores are coin flips; graded ones are Beta(4 p, 4 (1 - p)). The retain model's effects
are correlated with the model's (.7). The oracle knows the true standard deviation of the estimate: +- 1.96 of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from engine.leak.clusters import clusters_of
from engine.leak.estimator import prompt_leak
from engine.leak.intervals import (
    Difference,
    Mean,
    population_difference,
    population_mean,
    sampling_difference,
    sampling_mean,
)
from engine.leak.variance import sampling_variance

K = np.array([1, 8, 32, 128])
SAMPLES = 200
PROMPTS_OF = {6: 12, 10: 12, 20: 20, 40: 10, 200: 2}  # of each of so many authors
SPREADS = (0.0, 0.5, 1.0, 2.0)  # sd of the effect of an author
BASES = (-2.0, -4.0, -6.0)
RETAIN = {"leaks less": 2.0, "leaks as much": 0.0}  # how much lower the retain model's base is
SHARED = 0.7
LOGITS = np.linspace(-14, 10, 481)  # graded prompts are of the nearest of these
REPLICAS = 200  # prompts that stand for each of them: drawn once, and the truth is their mean
LOW, HIGH = 0.93, 0.98


@dataclasses.dataclass(frozen=True)
class Cell:
    """One population and study. sizes: prompts of each author."""

    kind: str
    base: float
    sizes: tuple[int, ...]
    spread: float


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Of one cell at every k: how often the interval held the truth, its mean and its median width beside the
    oracle's."""

    covered: np.ndarray
    width: np.ndarray
    median: np.ndarray


class Scores:
    """leak@k and its sampling variance of simulated prompts, by their logits, for one kind of scores."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "binary":
            scores = (np.arange(SAMPLES) < np.arange(SAMPLES + 1)[:, None]).astype(float)
            self.leak, self.variance = prompt_leak(scores, K), sampling_variance(scores, K)
        else:
            rng = np.random.default_rng(123)
            chances = 1 / (1 + np.exp(-np.repeat(LOGITS, REPLICAS)))[:, None]
            scores = np.nan_to_num(rng.beta(4 * chances, 4 * (1 - chances), (len(chances), SAMPLES)))
            self.leak, self.variance = prompt_leak(scores, K), sampling_variance(scores, K)

    def drawn(self, rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
        """The row of `leak` that each prompt's samples give."""
        if self.kind == "binary":
            return rng.binomial(SAMPLES, 1 / (1 + np.exp(-logits)))
        return _nearest(logits) * REPLICAS + rng.integers(REPLICAS, size=logits.shape)

    def truth(self, logits: np.ndarray) -> np.ndarray:
        """leak@k at each logit without sampling error: [..., K]."""
        if self.kind == "binary":
            return 1 - (1 - 1 / (1 + np.exp(-logits)))[..., None] ** K
        return self.leak.reshape(len(LOGITS), REPLICAS, len(K)).mean(axis=1)[_nearest(logits)]


def _nearest(logits: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((logits - LOGITS[0]) / (LOGITS[1] - LOGITS[0])), 0, len(LOGITS) - 1).astype(int)


def logits(rng: np.random.Generator, cell: Cell, trials: int, below: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the model's and of the retain model's prompts, [prompts, trials] each."""
    author = np.repeat(np.arange(len(cell.sizes)), cell.sizes)
    effects = []
    for rows, spread in ((len(cell.sizes), cell.spread), (len(author), 1.0)):
        one, other = rng.standard_normal((2, rows, trials)) * spread
        both = (one, SHARED * one + np.sqrt(1 - SHARED**2) * other)
        effects.append([each[author] if rows == len(cell.sizes) else each for each in both])
    return cell.base + effects[0][0] + effects[1][0], cell.base - below + effects[0][1] + effects[1][1]


def population_truth(scores: Scores, base: float, spread: float) -> np.ndarray:
    """leak@k of the whole population of authors and prompts: [K]."""
    z = np.linspace(-8, 8, 20_001)
    weight = np.exp(-(z**2) / 2)
    return np.asarray(weight @ scores.truth(base + np.hypot(spread, 1) * z) / weight.sum())


def measure(estimate: Mean | Difference, truth: np.ndarray) -> Found:
    """Of the 95 % intervals of many trials side by side: estimate's columns are [trials * K].

    truth: [K] of a population, or [trials, K] of each trial's own prompts.
    """
    ends = estimate.ends(0.05)
    low, high = (each.reshape(-1, len(K)) for each in ends)
    oracle = 2 * 1.96 * (estimate.value.reshape(-1, len(K)) - truth).std(axis=0)
    width = (high - low) / oracle
    covered = (low <= truth + 1e-12) & (truth <= high + 1e-12)
    return Found(covered.mean(axis=0), width.mean(axis=0), np.median(width, axis=0))


def study(scores: Scores, cell: Cell, trials: int, seed: int) -> dict[str, Found]:
    """Coverage of leak@k and of the excess over both retain models, for prompts like these and for these very ones."""
    clusters = clusters_of(np.repeat(np.arange(len(cell.sizes)), cell.sizes).tolist(), sum(cell.sizes))
    found: dict[str, Found] = {}
    whole = population_truth(scores, cell.base, cell.spread)
    for retain, below in RETAIN.items():
        rng = np.random.default_rng(seed)
        drawn = logits(rng, cell, trials, below)
        rows = [scores.drawn(rng, each) for each in drawn]
        model, other = (scores.leak[each].reshape(len(each), -1) for each in rows)
        if "leak" not in found:
            found["leak"] = measure(population_mean(model, clusters, len(K)), whole)
            found["ignored"] = measure(population_mean(model, clusters_of(None, len(model)), len(K)), whole)
        excess = whole - population_truth(scores, cell.base - below, cell.spread)
        found[retain] = measure(population_difference(model, other, clusters, len(K)), excess)
        means = [_sampling_mean(scores, each) for each in rows]
        truths = [scores.truth(each).mean(axis=0) for each in drawn]
        found["these: leak"] = measure(means[0], truths[0])
        found[f"these: {retain}"] = measure(sampling_difference(*means), truths[0] - truths[1])
    return found


def _sampling_mean(scores: Scores, rows: np.ndarray) -> Mean:
    leak, variance = (each[rows].reshape(len(rows), -1) for each in (scores.leak, scores.variance))
    return sampling_mean(leak, variance, np.tile(SAMPLES // K, rows.shape[1]), len(K))


def equal_cells(kind: str) -> list[Cell]:
    return [
        Cell(kind, base, (prompts,) * authors, spread)
        for base in BASES
        for authors, prompts in PROMPTS_OF.items()
        for spread in SPREADS
    ]


def other_cells(kind: str) -> list[Cell]:
    """Authors of very unequal size, and prompts that stand for themselves."""
    unequal = [(1, 2, 4, 8, 16, 41), (5, 10, 15, 20, 25, 30), (60, *(10,) * 9), tuple(range(1, 21))]
    cells = [Cell(kind, base, sizes, spread) for base in (-2.0, -4.0) for sizes in unequal for spread in SPREADS]
    return cells + [Cell(kind, base, (1,) * prompts, 1.0) for base in BASES for prompts in (40, 72, 400)]


def named(sizes: tuple[int, ...]) -> str:
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return f"{len(sizes)} of {min(sizes)} to {max(sizes)}"


TARGETS = {
    "leak": "leak@k",
    "leaks less": "excess, retain leaks less",
    "leaks as much": "excess, retain leaks as much",
}


def show_cells(title: str, found: dict[Cell, dict[str, Found]], targets: dict[str, str]) -> None:
    print(f"\n## {title}\n\nCoverage at k = {' / '.join(map(str, K))}, and beside it the median width in oracles'.\n")
    print("| authors x prompts | sd | " + " | ".join(targets.values()) + " |\n|---|---|" + "---|" * len(targets))
    for cell, of_cell in found.items():
        cells = [f"{shares(of_cell[name].covered)} ({ratios(of_cell[name].median)})" for name in targets]
        print(f"| {named(cell.sizes)} | {cell.spread:g} | " + " | ".join(cells) + " |")


def shares(values: np.ndarray) -> str:
    return " / ".join(f"{each:.3f}".lstrip("0") for each in values)


def ratios(values: np.ndarray) -> str:
    return " / ".join(f"{each:.2f}" if each < 10 else f"{each:.0f}" for each in values)


def show_summary(found: dict[Cell, dict[str, Found]], targets: dict[str, str]) -> None:
    """Over all cells: the least and the largest coverage, how many lie outside, and the widths."""
    print("| what | numbers | least | below 93 % | above 98 % | mean | median width | nine in ten below |")
    print("|---|---|---|---|---|---|---|---|")
    for name, title in targets.items():
        covered = np.array([of_cell[name].covered for of_cell in found.values()])
        median = np.array([of_cell[name].median for of_cell in found.values()])
        print(
            f"| {title} | {covered.size} | {covered.min():.3f} | {(covered < LOW).sum()} | {(covered > HIGH).sum()} "
            f"| {covered.mean():.3f} | {np.median(median):.2f} | {np.quantile(median, 0.9):.2f} |"
        )


def show_outside(found: dict[Cell, dict[str, Found]], targets: dict[str, str]) -> None:
    print("\n| outside | scores | base | authors x prompts | sd | coverage | median width |")
    print("|---|---|---|---|---|---|---|")
    for cell, of_cell in found.items():
        for name, title in targets.items():
            each = of_cell[name]
            if each.covered.min() < LOW or each.covered.max() > HIGH:
                print(
                    f"| {title} | {cell.kind} | {cell.base:g} | {named(cell.sizes)} | {cell.spread:g} "
                    f"| {shares(each.covered)} | {ratios(each.median)} |"
                )


def draw_image(found: dict[Cell, dict[str, Found]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"leak": "leak@k", "leaks less": "excess over retain", "ignored": "leak@k, authors ignored"}
    figure, axes = plt.subplots(1, len(titles), figsize=(10, 3.4), layout="constrained", sharey=True)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        axis.axhspan(LOW, HIGH, color="grey", alpha=0.2)
        axis.axhline(0.95, color="grey", linewidth=0.8)
        for place, spread in enumerate(SPREADS):
            chosen = [(cell, of_cell[name].covered) for cell, of_cell in found.items() if cell.spread == spread]
            x = [list(PROMPTS_OF).index(len(cell.sizes)) + 0.16 * (place - 1.5) for cell, _ in chosen for _ in K]
            axis.plot(x, np.concatenate([covered for _, covered in chosen]), ".", markersize=4, label=f"sd {spread:g}")
        axis.set(title=title, xlabel="authors", ylim=(0.3, 1.01))
        axis.set_xticks(range(len(PROMPTS_OF)), list(PROMPTS_OF))
    axes[0].set_ylabel("coverage of 95 % intervals")
    axes[0].legend(frameon=False, title="author effect")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    equal: dict[Cell, dict[str, Found]] = {}
    other: dict[Cell, dict[str, Found]] = {}
    for kind in ("binary", "graded"):
        scores = Scores(kind)
        equal |= {cell: study(scores, cell, args.trials, 1) for cell in equal_cells(kind)}
        other |= {cell: study(scores, cell, args.trials, 2) for cell in other_cells(kind)}
    print(f"# How often the intervals cover, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; ")
    print(f"`python -m perf.coverage --trials {args.trials}`, {time.perf_counter() - start:.0f} s. Nominal 95 %.\n")
    print((__doc__ or "").split("\n\n")[2].strip())
    print("\n## All cells: bases -2, -4, -6, binary and graded, for prompts like these\n")
    show_summary(equal, TARGETS)
    show_outside(equal, TARGETS)
    for kind in ("binary", "graded"):
        middle = {cell: each for cell, each in equal.items() if (cell.kind, cell.base) == (kind, -4.0)}
        show_cells(f"Base -4, {kind} scores, for prompts like these", middle, TARGETS)
    ignored = {cell: each for cell, each in equal.items() if (cell.kind, cell.base) == ("binary", -4.0)}
    show_cells("The same with the authors ignored", ignored, {"ignored": "leak@k"})
    print("\n## Authors of unequal size, and prompts that stand for themselves\n")
    show_summary(other, TARGETS)
    show_outside(other, TARGETS)
    these = {f"these: {name}": title for name, title in TARGETS.items()}
    print("\n## For these very prompts, the same cells\n")
    show_summary(equal | other, these)
    show_outside(equal | other, these)
    if args.image:
        draw_image(equal, args.image)


if __name__ == "__main__":
    main()
