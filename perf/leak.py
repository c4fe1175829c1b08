"""Measures the statistics: speed, and error beyond n. How often the intervals cover: perf/coverage.py.

    python -m perf.leak [--scores SCORES.jsonl] [--images docs/images] > perf/results/leak.md

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

from engine.leak.curve import leak_curve
from engine.leak.estimator import leak_at_k, pad_rows
from engine.leak.extrapolation import leak_beyond_n
from engine.reporting.scores import read_scores

REGIMES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
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
    retain, authors = np.random.default_rng(1).random((400, 200)), [prompt // 20 for prompt in range(400)]
    curves: dict[str, Callable[[], object]] = {
        "curve at 8 k": lambda: leak_curve(scores),
        "the same by 20 clusters, with the excess and its p-values": lambda: leak_curve(
            scores, retain_scores=retain, clusters=authors
        ),
        "the same for these very prompts": lambda: leak_curve(scores, retain_scores=retain, inference="prompts"),
    }
    for name, curve in curves.items():
        print(f"| {name} | {median_ms(curve):.0f} |")


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


def draw_image(folder: Path) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, action="append", default=[])
    parser.add_argument("--images", type=Path)
    args = parser.parse_args()
    print(f"# leak@k statistics, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; ")
    stored = "".join(f" --scores {path.name}" for path in args.scores)
    print(f"`python -m perf.leak{stored}`\n")
    speed()
    if args.images:
        draw_image(args.images)

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
