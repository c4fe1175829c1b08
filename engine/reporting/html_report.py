"""One self-contained HTML page about a run: verdict, curves, tables, the sentences that leaked, RULE's rounds, cost.

Results and the store come in; report.html comes out. Text of a model is escaped by the template: shown, never run.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.reporting.attack_table import attack_names, attack_rows, headline, headlines
from engine.reporting.formatting import interval_text, number_text
from engine.reporting.leaked_passages import worst_prompts
from engine.reporting.records import Curve
from engine.reporting.results import ModelResult, Results, generations_stage, groups
from engine.reporting.table import metric_rows, missing_reasons, table_k
from engine.reporting.verdict import caution, order_changes, verdict, with_greedy
from engine.store.files import write_atomic
from engine.store.replica import manifest_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("html_report.html.j2")
WORST_PROMPTS = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one model cost. tokens, seconds: in all; extra_*: of one more sample of every prompt, None where unknown."""

    name: str
    tokens: int
    seconds: float
    extra_tokens: float | None
    extra_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Heat:
    """leak@k of one model by decoding: a row a temperature, a column a top-p (and top-k), None where not
    sampled."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[float | None]]]


def write_report(results: Results, folder: Path, store_root: Path) -> Path:
    """Write report.html into `folder`; returns its path."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    judged = [model for model, _ in results.judged]
    page = environment.get_template(TEMPLATE.name).render(
        results=results,
        verdict=verdict(results),
        caution=caution(results),
        figures=_pictures(results),
        ks=table_k(results),
        groups=groups(results),
        judged=judged,
        told_by_greedy=bool(with_greedy(results)),
        order=order_changes(results),
        worst=[(model.name, worst_prompts(results, model, store_root, WORST_PROMPTS)) for model in judged],
        ruled=[model for model in results.models if model.rounds],
        metrics=metric_rows(results),
        missing=missing_reasons(results),
        heats=heats(results),
        attacks=attack_rows(results),
        attack_headline=headline(results),
        attack_headlines=headlines(results),
        floors=_floors(results),
        these=_both_inferences(results),
        clustered=any(curve.clusters not in (None, curve.prompts) for _, curve in results.headline),
        beyonds=[(model.name, record) for model in results.models for record in model.beyond],
        costs=[_cost(model, curve, store_root) for model, curve in results.headline],
        device="GPU" if results.experiment["sampling"].get("gpus") else "core",
        yaml=_experiment_yaml(results),
        number_text=number_text,
    )
    path = folder / REPORT
    write_atomic(path, page)
    return path


def heats(results: Results) -> list[Heat]:
    """leak at the largest k over temperature and top-p, where samples were drawn under more than one decoding."""
    from benchmarks.base import Decoding

    decodings = [Decoding(**raw) for raw in results.experiment["sampling"]["decoding"] if raw["temperature"] > 0]
    if len(decodings) < 2:
        return []
    temperatures = sorted({decoding.temperature for decoding in decodings})
    columns = sorted({(decoding.top_p, decoding.top_k or 0) for decoding in decodings})
    tables = []
    for model, _ in results.headline:
        leaks = {
            (decoding.temperature, (decoding.top_p, decoding.top_k or 0)): curve.leak[-1]
            for decoding in decodings
            if (curve := model.find_curve(results.leak_group, results.core_metric, decoding.name)) is not None
        }
        rows = [(f"T = {t:g}", [leaks.get((t, column)) for column in columns]) for t in temperatures]
        names = [f"p = {top_p:g}" + (f", top {top_k}" if top_k else "") for top_p, top_k in columns]
        tables.append(Heat(model.name, names, rows))
    return tables


@dataclasses.dataclass(frozen=True)
class Floor:
    """What one model leaks at least: at the largest k of the run, and at larger k, each with its name in words."""

    name: str
    leak: float
    beyond: dict[str, float]


@dataclasses.dataclass(frozen=True)
class BothInferences:
    """leak and excess of one model at the largest k, each with its interval as text: for prompts like these, and for
    these very prompts."""

    name: str
    leak: str
    leak_here: str
    excess: str
    excess_here: str


def _both_inferences(results: Results) -> list[BothInferences]:
    """A row a model whose intervals for these very prompts are known."""
    rows = []
    for model, curve in results.headline:
        if curve.these is not None:
            k, here = curve.k[-1], curve.for_these()
            leaks = (interval_text(curve.at(k)), interval_text(here.at(k)))
            excesses = [
                "" if model.role == "retain" else interval_text(each.excess_at(k), "") for each in (curve, here)
            ]
            rows.append(BothInferences(model.name, *leaks, *excesses))
    return rows


def _floors(results: Results) -> list[Floor]:
    """The floor of each model where it is known."""
    names = {"1000": "10\u00b3", "1000000": "10\u2076", "1000000000": "10\u2079"}
    return [
        Floor(model.name, curve.floor[-1], {names.get(k, k): value for k, value in curve.far_floor.items()})
        for model, curve in results.headline
        if curve.floor and curve.far_floor
    ]


def _cost(model: ModelResult, curve: Curve, store_root: Path) -> Cost:
    """leak@k needs k samples of every prompt, so one more k is one more sample of each, of the headline's decoding."""
    facts = manifest_of(store_root / model.stages[generations_stage(curve.decoding)]).get("facts")
    if facts is None:  # a run folder that was carried away from its store
        return Cost(model.name, model.tokens, model.seconds, None, None)
    return Cost(
        model.name, model.tokens, model.seconds, facts["tokens"] / curve.samples, facts["seconds"] / curve.samples
    )


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the page as inline SVG: wide, and narrow for a phone."""

    section: str
    caption: str
    wide: str
    narrow: str


def _drawn_scope(results: Results, group: str) -> str:
    """What the bands of a picture are about."""
    from engine.reporting.figures import with_bands

    curves = (model.find_curve(group, results.core_metric) for model in results.models)
    return next((with_bands(curve).scope for curve in curves if curve is not None), results.scope(group))


def _pictures(results: Results) -> list[Picture]:
    from engine.reporting.attack_figures import attack_curves, attack_heat_map
    from engine.reporting.figures import excess_figure, greedy_figure, leak_figure

    percent = f"{results.confidence:.0%}"
    drawn: list[tuple[str, str, Callable[..., Figure]]] = [
        (
            group,
            f"leak@k on {group.replace('_', ' ')} prompts, with {percent} bands {_drawn_scope(results, group)}",
            partial(leak_figure, results, group, titled=False),
        )
        for group in groups(results)
    ]
    if results.has_excess:
        caption = (
            "Excess: leak@k minus the retain model's on the same prompts; 0 is the retain model. On a scale of its own"
        )
        drawn.append((results.leak_group, caption, partial(excess_figure, results, titled=False)))
    if with_greedy(results):
        caption = "What one greedy answer shows and what k samples show; least leaking on top"
        drawn.append(("greedy", caption, partial(greedy_figure, results)))
    if attack_names(results):
        drawn.append(("attacks", "leak@k under each attack; a dot: uninformative", partial(attack_heat_map, results)))
        caption = "leak@k before (dashed) and after each attack; the retain model under the same attack in grey"
        drawn.append(("attacks", caption, partial(attack_curves, results)))
    return [
        Picture(
            section,
            caption,
            wide=_svg(draw(narrow=False), f"wide {caption}"),
            narrow=_svg(draw(narrow=True), f"narrow {caption}"),
        )
        for section, caption, draw in drawn
    ]


def _svg(figure: Figure, salt: str) -> str:
    """Inline SVG with text as text, in the page's own colour of text, its identifiers unlike any other figure's."""
    import matplotlib

    from engine.reporting.figures import INK, STYLE

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _experiment_yaml(results: Results) -> str:
    import yaml

    return yaml.safe_dump(results.experiment, sort_keys=False, allow_unicode=True)
