"""Measures the statistics: speed, coverage of the intervals, error beyond n.

    python -m perf.leak [--scores SCORES.jsonl] [--images docs/images] [--trials 1000] > perf/results/leak.md

Without --scores the samples are drawn from simulated prompts; "published" leaks like GradDiff on TOFU (leak@1..128
within .003 of the published values). With it, stored scores with at least 128 samples a prompt are replayed too.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from engine.leak.estimator import leak_at_k, leak_curve, pad_rows, prompt_leak
from engine.leak.extrapolation import leak_beyond_n
from engine.leak.intervals import INTERVALS, mean_interval
from engine.reporting.scores import read_scores

K = np.array([1, 8, 32])
REGIMES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "rare": lambda rng, size: np.where(rng.random(size) < 0.05, rng.beta(0.5, 20, size), 0),
    "little everywhere": lambda rng, size: rng.beta(2, 200, size),
    "published": lambda rng, size: rng.beta(0.336, 0.957, size),
    "saturated": lambda rng, size: rng.beta(8, 0.5, size),
}


def median_ms(work: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def speed() -> None:
    scores = np.random.default_rng(0).random((400, 200))
    every_k = np.arange(1, 201)
    print("## Speed, 400 prompts x 200 samples (median of 9)\n\n| what | ms |\n|---|---|")
    print(f"| leak@k at all 200 k | {median_ms(lambda: leak_at_k(scores, every_k)):.1f} |")
    for interval in INTERVALS:
        work = median_ms(lambda interval=interval: leak_curve(scores, interval=interval), 3)
        print(f"| curve at 8 k, {interval} interval, 10,000 resamples | {work:.0f} |")


def coverage(trials: int) -> dict[tuple[str, int, str], np.ndarray]:
    """Share of trials whose 95 % interval holds the true leak@k of the population of prompts, 64 samples a prompt."""
    covered = {}
    for regime, population in REGIMES.items():
        chances = population(np.random.default_rng(99), 2_000_000)
        truth = np.array([(1 - (1 - chances) ** k).mean() for k in K])
        for prompts in (40, 400):
            hits = {interval: np.zeros(len(K)) for interval in INTERVALS}
            for seed in range(trials):
                rng = np.random.default_rng(seed)
                chance = population(rng, prompts)
                values = prompt_leak((rng.random((prompts, 64)) < chance[:, None]).astype(float), K)
                for interval in INTERVALS:
                    low, high = mean_interval(values, seed=seed, interval=interval, resamples=1000)
                    hits[interval] += (low <= truth) & (truth <= high)
            covered |= {(regime, prompts, interval): hits[interval] / trials for interval in INTERVALS}
    return covered


def show_coverage(covered: dict[tuple[str, int, str], np.ndarray], trials: int) -> None:
    print(f"\n## Coverage of nominal 95 % at k = 1 / 8 / 32, 64 samples a prompt, {trials} trials\n")
    print("| prompts leak | prompts | " + " | ".join(INTERVALS) + " |\n|---|---|" + "---|" * len(INTERVALS))
    for regime in REGIMES:
        for prompts in (40, 400):
            cells = [" / ".join(f"{x:.3f}" for x in covered[regime, prompts, interval]) for interval in INTERVALS]
            print(f"| {regime} | {prompts} | " + " | ".join(cells) + " |")


def held_out(name: str, scores: np.ndarray) -> None:
    binary = (scores >= 1).astype(float)
    truth = float(leak_at_k(binary, 128))
    try:
        found = leak_beyond_n(binary[:, :32], np.array([128]))
    except ValueError as error:
        print(f"| {name} | {error} | | {truth:.4f} | | |")
        return
    interval = f"{found.low[0]:.4f} - {found.high[0]:.4f}"
    fit = "-" if found.fit_p_value is None else f"{found.fit_p_value:.2f}"
    print(f"| {name} | {found.leak[0]:.4f} | {interval} | {truth:.4f} | {found.leak[0] - truth:+.4f} | {fit} |")


def draw_images(covered: dict[tuple[str, int, str], np.ndarray], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    model = (rng.random((100, 200)) < rng.beta(0.336, 0.957, (100, 1))).astype(float)
    retain = (rng.random((100, 200)) < rng.beta(0.2, 1.2, (100, 1))).astype(float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    with_retain = leak_curve(model, retain_scores=retain)
    for curve, label in ((with_retain, "unlearned"), (leak_curve(retain), "retain")):
        left.plot(curve.k, curve.leak, marker="o", label=label)
        left.fill_between(curve.k, curve.low, curve.high, alpha=0.2)
    left.set(title="leak@k", xlabel="k", xscale="log", ylim=(0, 1))
    left.legend(frameon=False)
    right.plot(with_retain.k, with_retain.excess, marker="o", color="C3")
    right.fill_between(with_retain.k, with_retain.excess_low, with_retain.excess_high, alpha=0.2, color="C3")
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(title="excess over retain", xlabel="k", xscale="log")
    figure.savefig(folder / "leak_curve.png", dpi=110)

    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    for row, interval in enumerate(INTERVALS):
        values = np.concatenate([covered[regime, 400, interval] for regime in REGIMES])
        axis.plot(np.arange(len(values)) + 0.15 * (row - 1), values, "o", label=interval)
    labels = [f"{regime}\nk = {k}" if k == 8 else f"{k}" for regime in REGIMES for k in K]
    axis.axhspan(0.93, 0.97, color="grey", alpha=0.15)
    axis.axhline(0.95, color="grey", linewidth=0.8)
    axis.set(title="coverage of nominal 95 % intervals, 400 prompts", ylim=(0.5, 1.02))
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(folder / "coverage.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, action="append", default=[])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    print(f"# leak@k statistics, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; ")
    stored = "".join(f" --scores {path.name}" for path in args.scores)
    print(f"`python -m perf.leak --trials {args.trials}{stored}` (stored scores: those of `leakatk demo --seed 0`)\n")
    speed()
    covered = coverage(args.trials)
    show_coverage(covered, args.trials)
    if args.images:
        draw_images(covered, args.images)

    models = {}
    for regime in ("little everywhere", "published", "saturated"):
        chance = REGIMES[regime](np.random.default_rng(7), 400)
        models[regime] = (np.random.default_rng(8).random((400, 1024)) < chance[:, None]).astype(float)
    models |= {path.stem: pad_rows(read_scores(path).rows)[0] for path in args.scores}
    print("\n## leak@128 from 32 samples a prompt, by the beta-binomial model\n")
    print("| model | predicted | interval | of all samples | error | p of fit |\n|---|---|---|---|---|---|")
    for name, scores in models.items():
        held_out(name, scores)


if __name__ == "__main__":
    main()
