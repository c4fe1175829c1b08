"""Pictures of attacks, from Results: a heat map model by attack, and curves of leak@k before and after each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.reporting.attack_table import NO_ATTACK, attack_names, attack_rows, judged_models
from engine.reporting.figures import COLOURS, GREY, STYLE, save
from engine.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attack_heat_map(results: Results, narrow: bool = False) -> Figure:
    """leak@k at the largest k of each model without and under each attack; a dot marks what is uninformative."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    rows = attack_rows(results)
    names, attacks = list(dict.fromkeys(row.model for row in rows)), [NO_ATTACK, *attack_names(results)]
    values = np.full((len(names), len(attacks)), np.nan)
    with matplotlib.rc_context(STYLE):
        size = (3.7 if narrow else max(4.2, 1.9 + 0.62 * len(attacks)), 1.6 + 0.32 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for row in rows:
            place = names.index(row.model), attacks.index(row.attack)
            values[place] = row.leak[0]
            text = f"{row.leak[0]:.2f}" + ("·" if row.uninformative else "")
            colour = "white" if row.leak[0] > 0.6 else "#1c1c1b"
            axes.text(place[1], place[0], text, ha="center", va="center", fontsize=6 if narrow else 8, color=colour)
        axes.imshow(values, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(attacks)), attacks, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        k = results.headline[0][1].k[-1]
        axes.set_title(f"leak@{k} after each attack", loc="left", fontsize=11)
    return figure


def attack_curves(results: Results, narrow: bool = False) -> Figure:
    """A small picture for each attack: leak@k against k of every judged model, dashed as it was before the attack, and
    of the retain model in grey."""
    import matplotlib
    from matplotlib.figure import Figure

    attacks = attack_names(results)
    columns = 2 if narrow else min(4, len(attacks))
    rows = -(-len(attacks) // columns)
    judged = [model.name for model in judged_models(results)]
    shown = [model for model in results.models if model.role == "retain" or model.name in judged]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 if narrow else 2.3 * columns + 0.4, 2.1 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        unnamed = {model.name for model in shown}  # in the legend
        for axes, name in zip(grid.flat, attacks, strict=False):
            for model in shown:
                after = next((each for each in model.attacks if each.attack == name), None)
                before = model.curve(results.leak_group, results.core_metric)
                if after is None or before is None:
                    continue
                retain = model.role == "retain"
                colour = GREY if retain else COLOURS[judged.index(model.name) % len(COLOURS)]
                label = model.name if model.name in unnamed else None
                unnamed.discard(model.name)
                axes.plot(before.k, before.leak, color=colour, linewidth=1, linestyle=(0, (2, 2)))
                axes.plot(after.curve.k, after.curve.leak, color=colour, linewidth=1.8, label=label)
            axes.set_title(name, loc="left", fontsize=8.5)
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
            axes.set_ylim(-0.02, 1.03)
            axes.grid(axis="y", alpha=0.25)
        for empty in range(len(attacks), rows * columns):
            grid.flat[empty].set_visible(False)
            grid.flat[empty - columns].tick_params(labelbottom=True)  # the last one of its column
        ks = results.headline[0][1].k
        grid[0, 0].set_xticks([ks[0], ks[-1]], [str(ks[0]), str(ks[-1])])
        figure.supxlabel("k samples", fontsize=9)
        figure.supylabel("leak@k; dashed: before the attack", fontsize=9)
        figure.legend(
            loc="outside upper left", ncols=_columns(len(shown), 2 if narrow else 5), frameon=False, fontsize=8
        )
    return figure


def _columns(count: int, most: int) -> int:
    """Columns of a legend of so many names whose rows are as even as can be; names fill columns first."""
    rows = -(-count // most)
    return -(-count // rows)


def write_attack_figures(results: Results, folder: Path) -> list[Path]:
    """Write both pictures as PNG into `folder`; nothing where nothing was attacked."""
    if not attack_names(results):
        return []
    return [
        save(attack_heat_map(results), folder / "attacks.png"),
        save(attack_curves(results), folder / "leak_at_k_attacks.png"),
    ]
