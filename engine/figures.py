"""The leak@k picture: curves with confidence bands against k, from Results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.results import Results

# Okabe and Ito's palette: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A200")


def leak_figure(results: Results, group: str | None = None) -> Any:
    """A matplotlib figure of leak@k against k by the core metric: target and retain in grey, controls dashed."""
    from matplotlib.figure import Figure

    group = group or results.leak_group
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    colours = _colours(results)
    for model in results.models:
        curve = model.curve(group, results.core_metric)
        if curve is None:
            continue
        style = {"target": (0, (1, 1)), "retain": (0, (1, 1)), "control": (0, (5, 2))}.get(model.role, "solid")
        colour = colours[model.name]
        axes.plot(curve.k, curve.leak, color=colour, linestyle=style, linewidth=2, marker="o", markersize=3)
        axes.fill_between(curve.k, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    _label_ends(axes, results, group, colours)
    axes.set_xscale("log", base=2)
    ks = results.experiment["leak"]["k"]
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlim(ks[0] * 0.9, ks[-1] * 1.1)
    axes.set_xlabel("k, samples drawn from a prompt")
    axes.set_ylabel(f"leak@k ({results.core_metric.replace('_', ' ')})")
    axes.set_title(
        f"{results.name}: the worst of k samples on {group.replace('_', ' ')} prompts", loc="left", fontsize=11
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure


def write_figures(results: Results, folder: Path) -> Path:
    """Write leak_at_k.png (and one for each further group of forget prompts) into `folder`; returns the first."""
    import matplotlib

    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    groups = dict.fromkeys(curve.group for model in results.models for curve in model.curves)
    for group in groups:
        name = "leak_at_k.png" if group == results.leak_group else f"leak_at_k_{group}.png"
        leak_figure(results, group).savefig(folder / name, dpi=150)
    return folder / "leak_at_k.png"


def _colours(results: Results) -> dict[str, str]:
    """A colour a model; a control wears the colour of the RULE run that it stands beside."""
    colours: dict[str, str] = {"target": "#222222", "retain": "#8A8A8A"}
    free = iter(COLOURS * (1 + len(results.models) // len(COLOURS)))
    for model in results.models:
        if model.role == "control":
            ruled = f"rule-{model.name.removesuffix('-control')}"
            colours[model.name] = colours.get(ruled) or next(free)
        elif model.name not in colours:
            colours[model.name] = next(free)
    return colours


def _label_ends(axes: Any, results: Results, group: str, colours: dict[str, str]) -> None:
    """Each curve's name at its right end, moved apart where they would overlap."""
    ends = [
        (curve.leak[-1], model.name, curve.k[-1])
        for model in results.models
        if (curve := model.curve(group, results.core_metric)) is not None
    ]
    gap, position = 0.052, -0.06
    for value, name, k in sorted(ends):
        position = max(position + gap, value)
        axes.annotate(
            f"{name} {value:.2f}",
            (k, value),
            xytext=(1.03, position),
            textcoords=("axes fraction", "data"),
            color=colours[name],
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "alpha": 0.35, "linewidth": 0.7},
        )
