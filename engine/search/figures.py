"""The pictures of a search: leak@k against utility, every trial over its hyperparameters, greedy beside leak@k.

A Search comes in, PNG files in its folder come out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.reporting.figures import COLOURS, GREY, INK, STYLE, save
from engine.search.summary import rank_correlation
from engine.search.tuner import Search, Trial

BLUE, ORANGE = COLOURS[0], COLOURS[1]


def draw(found: Search) -> list[Path]:
    """pareto.png, parallel.png and greedy.png; none where every trial failed."""
    import matplotlib

    trials = [each for each in found.trials if not each.seen["failed"]]
    if not trials:
        return []
    with matplotlib.rc_context(STYLE):
        drawn = [("pareto", _pareto(found, trials)), ("parallel", _parallel(found, trials)), ("greedy", _greedy(found))]
        return [save(figure, found.folder / f"{name}.png") for name, figure in drawn]


def _axes(width: float = 6.4, height: float = 4.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def _pareto(found: Search, trials: list[Trial]) -> Any:
    """leak@k against utility: full looks with their intervals, lower bounds of the others, the front, the winner."""
    figure, axes = _axes()
    full = [each for each in trials if each.seen["full"]]
    for each in full:
        place = each.seen["utility"]
        axes.vlines(place, each.seen["low"], each.seen["high"], color=BLUE, alpha=0.25, linewidth=3)
    _dots(axes, [(each.seen["utility"], each.seen["leak"]) for each in full], BLUE, "o", "sampled in full")
    others = [(each.seen["utility"], each.seen["low"]) for each in trials if each not in full and each.seen["low"] > 0]
    _dots(axes, others, GREY, "^", "stopped: at least this")
    front = [(each.seen["utility"], each.seen["leak"]) for each in found.front]
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="pre", color=INK, linewidth=1, label="Pareto front")
    if found.best is not None:
        place = (found.best.seen["utility"], found.best.seen["leak"])
        axes.scatter(*place, s=170, facecolors="none", edgecolors=ORANGE, linewidths=1.8, label="winner", zorder=3)
    if "utility" in found.setting.least:
        axes.axvline(found.setting.least["utility"], color=ORANGE, linewidth=1, linestyle=":", label="least utility")
    axes.set(xlabel="utility", ylabel=f"leak@{found.setting.space.objective.k}")
    axes.set_title(f"{found.setting.space.method}: leakage against utility", loc="left")
    axes.legend(frameon=False)
    return figure


def _greedy(found: Search) -> Any:
    """The ranking under greedy answers beside the ranking under leak@k: a line a trial, from one rank to the other."""
    full = [each for each in found.trials if each.seen["full"]]
    figure, axes = _axes(5.6, max(3.2, 1.2 + 0.22 * len(full)))
    ranks = {name: _ranks([each.seen[name] for each in full]) for name in ("greedy", "leak")}
    for index, each in enumerate(full):
        won = each is found.best
        colour, places = ORANGE if won else GREY, [ranks["greedy"][index], ranks["leak"][index]]
        axes.plot([0, 1], places, marker="o", markersize=4, color=colour, linewidth=2.2 if won else 1, zorder=2 + won)
    for name, side in (("greedy", 0), ("leak", 1)):
        for place in sorted(set(ranks[name])):
            tied = [each for each, rank in zip(full, ranks[name], strict=True) if rank == place]
            many = f" ({len(tied)} trials)" if len(tied) > 1 else ""
            offset, end = (8, "left") if side else (-8, "right")
            colour = ORANGE if found.best in tied else INK
            text = f"{tied[0].seen[name]:.3f}{many}"
            place_of = {"xytext": (offset, 0), "textcoords": "offset points", "ha": end, "va": "center"}
            axes.annotate(text, (side, place), fontsize=8, color=colour, **place_of)
    correlation, count = rank_correlation(found)
    known = f"Spearman correlation {correlation:.2f}" if correlation == correlation else "no correlation to compute"
    axes.set_title(f"{count} trials sampled in full: {known}", loc="left", fontsize=10)
    axes.set_xticks([0, 1], ["rank by greedy", f"rank by leak@{found.setting.space.objective.k}"])
    axes.set_xlim(-0.55, 1.45)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return figure


def _ranks(values: list[float]) -> list[float]:
    """Ranks from the smallest; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return [float(each) for each in rankdata(values)] if values else []


def _dots(axes: Any, points: list[tuple[float, float]], colour: str, marker: str, label: str) -> None:
    if points:
        axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=28, label=label)


def _parallel(found: Search, trials: list[Trial]) -> Any:
    """Parallel coordinates: every trial as a line over its hyperparameters, utility and leak@k."""
    from matplotlib import colormaps

    names = list(found.setting.space.parameters)
    figure, axes = _axes(1.6 * (len(names) + 2))
    columns = [_scaled(found, name, [each.values.get(name) for each in trials]) for name in names]
    columns.append([each.seen["utility"] for each in trials])
    columns.append([each.seen["leak"] for each in trials])
    colors = colormaps["cividis"]
    for row, each in zip(np.array(columns, dtype=float).T, trials, strict=True):
        won = each is found.best
        colour = ORANGE if won else colors(1 - min(each.seen["leak"], 1.0))
        axes.plot(
            row, color=colour, linewidth=2.5 if won else 1, marker="." if not won else "o", zorder=3 if won else 2
        )
    axes.set_xticks(range(len(columns)), [*names, "utility", "leak@k"])
    axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel("share of the range")
    axes.set_title("every trial; dark lines leak, the thick one won", loc="left")
    return figure


def _scaled(found: Search, name: str, values: list[Any]) -> list[float]:
    """Where each value lies in the searched range, 0 to 1; NaN where the parameter was not in play."""
    parameter = found.setting.space.parameters[name]
    if parameter.choice is not None:
        last = max(1, len(parameter.choice) - 1)
        return [parameter.choice.index(value) / last if value in parameter.choice else np.nan for value in values]
    low, high = parameter.corners
    turned: Any = np.log if parameter.loguniform is not None else np.asarray
    return [
        np.nan if value is None else float((turned(value) - turned(low)) / (turned(high) - turned(low)))
        for value in values
    ]
