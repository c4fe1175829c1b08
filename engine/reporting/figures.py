"""The pictures of a run, from Results: leak@k and excess against k with confidence bands, greedy beside leak@k.

Each is drawn wide, for a page or a paper, or narrow, for a phone. Knows nothing of the report that shows them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.reporting.records import Curve
from engine.reporting.results import Results, groups
from engine.reporting.verdict import with_greedy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dashes = str | tuple[int, tuple[int, int]]  # matplotlib's line style

# Okabe and Ito's palette: readers of any colour vision can tell its colours apart, and markers and dashes in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A200")
MARKERS = "os^Dv<>P"
PICTURE = "leak_at_k.png"  # a run's first
INK = "#1c1c1b"  # of axes and text; a page replaces it by its own colour of text
GREY = "#8a8a8a"
ROLE_DASHES: dict[str, Dashes] = {"target": (0, (1, 1)), "retain": (0, (1, 1)), "control": (0, (5, 2))}
STYLE: dict[Any, Any] = {  # matplotlib types each key by its name
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: text in a paper's PDF stays text
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One model's curve with how it is drawn."""

    name: str
    role: str
    curve: Curve
    colour: str
    marker: str


def lines_of(curves: Iterable[tuple[str, str, Curve]]) -> list[Line]:
    """(name, role, curve) of each model with a colour of its own; a control has that of the RULE run beside it."""
    rows = list(curves)
    colours = {"target": INK, "retain": GREY}
    palette = itertools.cycle(COLOURS)
    for name, role, _ in sorted(rows, key=lambda row: row[1] == "control"):
        ruled = f"rule-{name.replace('-control', '')}"
        colours[name] = colours.get(role) or (colours.get(ruled) if role == "control" else None) or next(palette)
    markers = itertools.cycle(MARKERS)
    return [Line(name, role, curve, colours[name], next(markers)) for name, role, curve in rows]


def leak_figure(results: Results, group: str | None = None, narrow: bool = False, titled: bool = True) -> Figure:
    """leak@k against k by the core metric: target and retain in black and grey, controls dashed."""
    group = group or results.leak_group
    title = f"{results.name}: the worst of k samples on {group.replace('_', ' ')} prompts" if titled else ""
    return curve_figure(_lines(results, group), title, results.core_metric, narrow=narrow)


def excess_figure(results: Results, narrow: bool = False, titled: bool = True) -> Figure:
    """leak@k minus the retain model's against k, for a run that has a retain model."""
    lines = above_retain(_lines(results, results.leak_group))
    title = f"{results.name}: leak above the retain model's" if titled else ""
    return curve_figure(lines, title, results.core_metric, True, narrow)


def above_retain(lines: list[Line]) -> list[Line]:
    """The lines that have an excess, without the target model's where there are others: it would dwarf them."""
    with_excess = [line for line in lines if line.role != "retain" and line.curve.excess]
    return [line for line in with_excess if line.role != "target"] or with_excess


def curve_figure(lines: list[Line], title: str, metric: str, excess: bool = False, narrow: bool = False) -> Figure:
    """A matplotlib figure of curves with their bands over k; names at the right ends, or below where it is narrow."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        rows = -(-len(lines) // 2)
        size = (3.7, 3.4 + 0.2 * rows) if narrow else (8.4, max(4.8, 0.24 * len(lines)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            k, (value, low, high) = line.curve.k, _series(line.curve, excess)
            dashes = ROLE_DASHES.get(line.role, "solid")
            (drawn,) = axes.plot(k, value, color=line.colour, linestyle=dashes, linewidth=1.8, label=line.name)
            drawn.set(marker=line.marker, markersize=3.5)
            axes.fill_between(k, low, high, color=line.colour, alpha=0.13, linewidth=0)
        if not excess:
            axes.set_ylim(-0.02, 1.03)
        _k_axis(axes, sorted({k for line in lines for k in line.curve.k}), narrow)
        axes.set_ylabel(f"{'excess ' if excess else ''}leak@k ({metric.replace('_', ' ')})")
        if excess:
            axes.axhline(0, color=INK, linewidth=0.8)
        if narrow:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        else:
            _label_ends(axes, lines, excess, size[1])
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(axis="y", alpha=0.25)
    return figure


def greedy_figure(results: Results, narrow: bool = False) -> Figure:
    """The greedy score of each judged model that has one, and its leak@k at the largest k, the least leaking on top."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = sorted(with_greedy(results), key=lambda row: -row[1].leak[-1])
    heights = range(len(rows))
    greedy = [model.greedy[results.leak_group] for model, _ in rows]
    leak, low, high = zip(*((curve.leak[-1], curve.low[-1], curve.high[-1]) for _, curve in rows), strict=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 if narrow else 8.4, 1.3 + 0.36 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.hlines(heights, greedy, leak, color=GREY, linewidth=2)
        axes.hlines(heights, low, high, color=COLOURS[1], alpha=0.3, linewidth=7)
        k = rows[0][1].k[-1]
        axes.plot(leak, heights, "o", color=COLOURS[1], label=f"leak@{k}" if narrow else f"leak@{k} with its interval")
        axes.plot(greedy, heights, "D", color=COLOURS[0], markersize=5, label="greedy" if narrow else "greedy decoding")
        axes.set_yticks(heights, [model.name for model, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(-0.02, 1.03)
        axes.set_xlabel(results.core_metric.replace("_", " "))
        axes.grid(axis="x", alpha=0.25)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figure


def write_figures(results: Results, folder: Path) -> Path:
    """Write leak_at_k.png (and one for each further group of forget prompts) into `folder`; returns the first."""
    for group in groups(results):
        leak_figure(results, group).savefig(folder / f"{_name(results, group)}.png", dpi=150)
    return folder / PICTURE


def write_paper_figures(results: Results, folder: Path, suffix: str) -> list[Path]:
    """Write every picture of the run as .pdf or .svg into `folder`; returns their paths."""
    figures = {_name(results, group): leak_figure(results, group) for group in groups(results)}
    if results.has_excess:
        figures["excess_leak_at_k"] = excess_figure(results)
    if with_greedy(results):
        figures["greedy_and_leak"] = greedy_figure(results)
    return [save(figure, folder / f"{name}.{suffix}") for name, figure in figures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's suffix, without a date in it; returns the path."""
    import matplotlib

    dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata=dated)
    return path


def _name(results: Results, group: str) -> str:
    return "leak_at_k" if group == results.leak_group else f"leak_at_k_{group}"


def _lines(results: Results, group: str) -> list[Line]:
    curves = [(model, model.find_curve(group, results.core_metric)) for model in results.models]
    return lines_of((model.name, model.role, with_bands(curve)) for model, curve in curves if curve is not None)


def with_bands(curve: Curve) -> Curve:
    """The curve as it is drawn: with bands for these very prompts, where they are known. Models of one run answer the
    same prompts, so that is what tells their curves apart; what other authors would give stands in the tables."""
    return curve if curve.these is None else curve.for_these()


def _series(curve: Curve, excess: bool) -> tuple[list[float], list[float], list[float]]:
    if excess and curve.excess and curve.excess_low and curve.excess_high:
        return curve.excess, curve.excess_low, curve.excess_high
    return curve.leak, curve.low, curve.high


def _k_axis(axes: Axes, ks: list[int], narrow: bool) -> None:
    shown = ks if len(ks) <= 12 else [k for k in ks if k & (k - 1) == 0]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.minorticks_off()
    if ks:
        axes.set_xlim(ks[0] * 0.9, ks[-1] * 1.1)
    axes.set_xlabel("k samples" if narrow else "k, samples drawn from a prompt")


def _label_ends(axes: Axes, lines: list[Line], excess: bool, height: float) -> None:
    """Each curve's name at its right end, moved apart where they would overlap."""
    ends = [(_series(line.curve, excess)[0][-1], line.name, line.curve.k[-1], line.colour) for line in lines]
    low, high = axes.get_ylim()
    gap = 0.23 * (high - low) / height
    position = low - gap
    for value, name, k, colour in sorted(ends):
        position = max(position + gap, value)
        axes.annotate(
            f"{name} {value:.2f}".replace("-0.00", "0.00"),
            (k, value),
            xytext=(1.03, position),
            textcoords=("axes fraction", "data"),
            color=colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": colour, "alpha": 0.35, "linewidth": 0.7},
        )
