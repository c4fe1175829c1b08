"""The pictures of a search: leak@k against utility, every trial over its hyperparameters, greedy beside leak@k.

A Search comes in, PNG files in its folder come out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.reporting.figures import COLOURS, GREY, INK, STYLE, save
from engine.search.result import Search, Trial
from engine.search.summary import rank_correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = COLOURS[0], COLOURS[1]


def write_figures(search: Search) -> list[Path]:
    """pareto.png, parallel.png and greedy.png in the search's folder; none where every trial failed."""
    import matplotlib

    trials = [trial for trial in search.trials if not trial.report.failed]
    if not trials:
        return []
    with matplotlib.rc_context(STYLE):
        figures = {
            "pareto": _pareto(search, trials),
            "parallel": _parallel(search, trials),
            "greedy": _greedy(search),
        }
        return [save(figure, search.folder / f"{name}.png") for name, figure in figures.items()]


def _axes(width: float = 6.4, height: float = 4.4) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def _pareto(search: Search, trials: list[Trial]) -> Figure:
    """leak@k against utility: trials sampled in full with their intervals, lower bounds of the others, the front, the
    winner."""
    figure, axes = _axes()
    full = [trial.report for trial in search.full]
    for report in full:
        axes.vlines(report.utility, report.low, report.high, color=BLUE, alpha=0.25, linewidth=3)
    _dots(axes, [(report.utility, report.leak) for report in full], BLUE, "o", "sampled in full")
    stopped = [trial.report for trial in trials if not trial.report.full and trial.report.low > 0]
    _dots(axes, [(report.utility, report.low) for report in stopped], GREY, "^", "stopped: at least this")
    front = [(trial.report.utility, trial.report.leak) for trial in search.front]
    if len(front) > 1:
        utility, leak = zip(*front, strict=True)
        axes.step(utility, leak, where="pre", color=INK, linewidth=1, label="Pareto front")
    if search.best is not None:
        best = search.best.report
        axes.scatter(
            best.utility,
            best.leak,
            s=170,
            facecolors="none",
            edgecolors=ORANGE,
            linewidths=1.8,
            label="winner",
            zorder=3,
        )
    if "utility" in search.setting.least:
        axes.axvline(search.setting.least["utility"], color=ORANGE, linewidth=1, linestyle=":", label="least utility")
    axes.set(xlabel="utility", ylabel=search.setting.objective)
    axes.set_title(f"{search.setting.space.method}: leakage against utility", loc="left")
    axes.legend(frameon=False)
    return figure


def _greedy(search: Search) -> Figure:
    """The ranking under greedy answers beside the ranking under leak@k: a line a trial, from one rank to the other."""
    full = search.full
    figure, axes = _axes(5.6, max(3.2, 1.2 + 0.22 * len(full)))
    greedy = [trial.report.greedy for trial in full]
    leak = [trial.report.leak for trial in full]
    for trial, ranks in zip(full, zip(_ranks(greedy), _ranks(leak), strict=True), strict=True):
        won = trial is search.best
        colour, width = (ORANGE, 2.2) if won else (GREY, 1.0)
        axes.plot([0, 1], ranks, marker="o", markersize=4, color=colour, linewidth=width, zorder=2 + won)
    for values, side in ((greedy, 0), (leak, 1)):
        _label_ranks(axes, full, values, side, search.best)
    correlation, count = rank_correlation(search)
    text = "no correlation to compute" if math.isnan(correlation) else f"Spearman correlation {correlation:.2f}"
    axes.set_title(f"{count} trials sampled in full: {text}", loc="left", fontsize=10)
    axes.set_xticks([0, 1], ["rank by greedy", f"rank by {search.setting.objective}"])
    axes.set_xlim(-0.55, 1.45)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return figure


def _label_ranks(axes: Axes, trials: list[Trial], values: list[float], side: int, best: Trial | None) -> None:
    """The value at each rank of one side, 0 left or 1 right, with the number of trials that share it."""
    ranks = _ranks(values)
    for rank in sorted(set(ranks)):
        tied = [index for index, other in enumerate(ranks) if other == rank]
        count = f" ({len(tied)} trials)" if len(tied) > 1 else ""
        axes.annotate(
            f"{values[tied[0]]:.3f}{count}",
            (side, rank),
            xytext=(8 if side else -8, 0),
            textcoords="offset points",
            ha="left" if side else "right",
            va="center",
            fontsize=8,
            color=ORANGE if any(trials[index] is best for index in tied) else INK,
        )


def _ranks(values: list[float]) -> list[float]:
    """Ranks from the smallest; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata(values)] if values else []


def _dots(axes: Axes, points: list[tuple[float, float]], colour: str, marker: str, label: str) -> None:
    if points:
        utility, leak = zip(*points, strict=True)
        axes.scatter(utility, leak, color=colour, marker=marker, s=28, label=label)


def _parallel(search: Search, trials: list[Trial]) -> Figure:
    """Parallel coordinates: every trial as a line over its hyperparameters, utility and leak@k."""
    from matplotlib import colormaps

    names = list(search.setting.space.parameters)
    figure, axes = _axes(1.6 * (len(names) + 2))
    columns = [_scaled(search, name, [trial.values.get(name) for trial in trials]) for name in names]
    columns.append([trial.report.utility for trial in trials])
    columns.append([trial.report.leak for trial in trials])
    shades = colormaps["cividis"]
    for row, trial in zip(np.array(columns, dtype=float).T, trials, strict=True):
        if trial is search.best:
            axes.plot(row, color=ORANGE, linewidth=2.5, marker="o", zorder=3)
        else:
            axes.plot(row, color=shades(1 - min(trial.report.leak, 1.0)), linewidth=1, marker=".", zorder=2)
    axes.set_xticks(range(len(columns)), [*names, "utility", "leak@k"])
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("share of the range")
    axes.set_title("every trial; dark lines leak, the thick one won", loc="left")
    return figure


def _scaled(search: Search, name: str, values: Sequence[object]) -> list[float]:
    """Where each value is in the searched range, 0 to 1; NaN where the trial does not have the parameter."""
    parameter = search.setting.space.parameters[name]
    if parameter.choice is not None:
        last = max(1, len(parameter.choice) - 1)
        return [parameter.choice.index(value) / last if value in parameter.choice else np.nan for value in values]
    ends = parameter.loguniform or parameter.uniform or parameter.int or (0, 1)
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    low, high = (float(end) for end in ends)
    if parameter.loguniform is not None:
        numbers, low, high = np.log(numbers), math.log(low), math.log(high)
    return list(((numbers - low) / (high - low)).tolist())
