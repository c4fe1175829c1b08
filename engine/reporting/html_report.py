"""One self-contained HTML page about a run: verdict, curves, tables, the sentences that leaked, RULE's rounds, cost.

Results and the store come in; report.html comes out. Text of a model is escaped by the template: shown, never run.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.reporting.leaked_passages import worst_prompts
from engine.reporting.results import Curve, ModelResult, Results, groups
from engine.reporting.table import metric_rows, missing_reasons, table_k
from engine.store.files import write_atomic
from engine.store.replica import manifest_of

TEMPLATE = Path(__file__).with_name("html_report.html.j2")
WORST_PROMPTS = 5
CLEAN = 0.05  # a greedy score at or below it looks clean


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one model took. tokens, seconds: in all; extra_*: of one more sample of every prompt, None where unknown."""

    name: str
    tokens: int
    seconds: float
    extra_tokens: float | None
    extra_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Heat:
    """leak@k of one model by decoding: a row a temperature, a column a top-p (and top-k), None where not sampled; each
    with whether it was reweighted from another decoding's samples."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[float, bool] | None]]]


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
        figures=_figures(results),
        ks=table_k(results),
        groups=groups(results),
        judged=judged,
        order=order_changes(results),
        worst=[(each.name, worst_prompts(results, each, store_root, WORST_PROMPTS)) for each in judged],
        ruled=[model for model in results.models if model.rounds],
        metrics=metric_rows(results),
        missing=missing_reasons(results),
        heats=heats(results),
        reweighted=any(curve.how == "reweighted" for model in results.models for curve in model.curves),
        floors=_floors(results),
        beyonds=[(model.name, each) for model in results.models for each in model.beyond],
        costs=[_cost(model, curve, store_root) for model, curve in results.headline],
        device="GPU" if results.experiment["sampling"].get("gpus") else "core",
        yaml=_experiment_yaml(results),
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def verdict(results: Results) -> list[str]:
    """Two sentences: what one greedy answer says of the judged models, and what k samples say."""
    rows = [row for row in results.judged if row[0].role != "control"]
    if not rows:
        return ["No model was evaluated."]
    return [_greedy_sentence(results, rows), _sampled_sentence(results, rows)]


def caution(results: Results) -> str | None:
    """What takes the verdict its worth: a target model that does not leak has nothing to unlearn."""
    for model, curve in results.headline:
        excess = curve.excess_at(curve.k[-1])
        if model.role == "target" and (model, curve) not in results.judged and excess and excess[0] <= CLEAN:
            return (
                f"Caution: the target model itself leaks hardly more than luck (excess@{curve.k[-1]} {excess[0]:.3f}): "
                "it may never have learned the forget set, and then nothing was unlearned."
            )
    return None


def _greedy_sentence(results: Results, rows: list[tuple[ModelResult, Curve]]) -> str:
    clean = [model.name for model, _ in rows if model.greedy[results.leak_group] <= CLEAN]
    if len(rows) == 1:
        model = rows[0][0]
        score = f"score {model.greedy[results.leak_group]:.2f}"
        if clean:
            return f"Judged by one greedy answer, {_called(model)} looks clean ({score})."
        return f"Even one greedy answer shows what {_called(model)} should not know ({score})."
    if not clean:
        return f"None of the {len(rows)} unlearned models looks clean even by one greedy answer."
    named = (
        f"all {len(rows)} unlearned models"
        if len(clean) == len(rows)
        else f"{len(clean)} of {len(rows)} unlearned models"
    )
    looks = "looks" if len(clean) == 1 else "look"
    which = "" if len(clean) == len(rows) else f": {_names(clean)}"
    return f"Judged by one greedy answer, {named} {looks} clean (score at most {CLEAN}){which}."


def _sampled_sentence(results: Results, rows: list[tuple[ModelResult, Curve]]) -> str:
    k = rows[0][1].k[-1]
    if rows[0][1].excess is None:
        model, curve = max(rows, key=lambda row: row[1].leak[-1])
        most = "" if len(rows) == 1 else " most"
        return (
            f"Sampled {k} times, {_called(model)} leaks{most}, leak@{k} = {_interval(curve.at(k))}; "
            "without a retain model luck cannot be told from leakage."
        )
    above = [(model, curve) for model, curve in rows if (excess := curve.excess_at(k)) and excess[1] > 0]
    if above:
        few = len(above) <= 2
        names = [
            f"{_called(model)} (excess {_interval(excess) if few else f'{excess[0]:.3f}'})"
            for model, curve in above
            if (excess := curve.excess_at(k))
        ]
        leak = "leaks" if len(names) == 1 else "leak"
        return f"Sampled {k} times, {_names(names)} {leak} more than the retain model does by luck."
    subject = f"{_called(rows[0][0])} does not leak" if len(rows) == 1 else "none leaks"
    bounds = [curve.bound[-1] for _, curve in rows if curve.bound]
    at_most = f"; with {results.confidence:.0%} confidence leak@{k} <= {max(bounds):.3f}" if bounds else ""
    return (
        f"Sampled {k} times, {subject} more than the retain model does by luck, as far as the intervals tell{at_most}."
    )


def order_changes(results: Results) -> tuple[int, int, int]:
    """Pairs of judged models: in all, in the opposite order by greedy decoding, and told apart by leak@k alone."""
    rows = [(model.greedy[results.leak_group], curve.leak[-1]) for model, curve in results.judged]
    pairs = list(itertools.combinations(rows, 2))
    opposite = sum((one[0] - other[0]) * (one[1] - other[1]) < 0 for one, other in pairs)
    tied = sum(one[0] == other[0] and one[1] != other[1] for one, other in pairs)
    return len(pairs), opposite, tied


def heats(results: Results) -> list[Heat]:
    """leak at the largest k over temperature and top-p, where samples were drawn under more than one decoding."""
    from benchmarks.base import Decoding

    decodings = [Decoding(**each) for each in results.experiment["sampling"]["decoding"] if each["temperature"] > 0]
    if len(decodings) < 2:
        return []
    temperatures = sorted({each.temperature for each in decodings})
    columns = sorted({(each.top_p, each.top_k or 0) for each in decodings})
    found = []
    for model, _ in results.headline:
        leaks = {
            (each.temperature, (each.top_p, each.top_k or 0)): (curve.leak[-1], curve.how == "reweighted")
            for each in decodings
            if (curve := model.curve(results.leak_group, results.core_metric, each.name)) is not None
        }
        rows = [(f"T = {t:g}", [leaks.get((t, column)) for column in columns]) for t in temperatures]
        names = [f"p = {top_p:g}" + (f", top {top_k}" if top_k else "") for top_p, top_k in columns]
        found.append(Heat(model.name, names, rows))
    return found


def _floors(results: Results) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """Of each model whose leak floor is known: its name, the floor at the largest k, and those at larger k by name."""
    names = {"1000": "10\u00b3", "1000000": "10\u2076", "1000000000": "10\u2079"}
    return [
        (model.name, curve.floor[-1], [(names.get(k, k), value) for k, value in curve.far_floor.items()])
        for model, curve in results.headline
        if curve.floor and curve.far_floor
    ]


def _cost(model: ModelResult, curve: Curve, store_root: Path) -> Cost:
    """leak@k needs k samples of every prompt, so one more k is one more sample of each, of the headline's decoding."""
    facts = manifest_of(store_root / model.stages[f"generations {curve.decoding}"]).get("facts")
    if facts is None:  # a run folder that was carried away from its store
        return Cost(model.name, model.tokens, model.seconds, None, None)
    return Cost(
        model.name, model.tokens, model.seconds, facts["tokens"] / curve.samples, facts["seconds"] / curve.samples
    )


def _figures(results: Results) -> list[dict[str, str]]:
    """Each picture with its section and caption, as inline SVG: wide, and narrow for a phone."""
    from engine.reporting.figures import excess_figure, greedy_figure, groups, leak_figure

    percent = f"{results.confidence:.0%}"
    drawn: list[tuple[str, str, Callable[..., Any]]] = [
        (
            group,
            f"leak@k on {group.replace('_', ' ')} prompts, with {percent} bands over prompts",
            partial(leak_figure, results, group, titled=False),
        )
        for group in groups(results)
    ]
    if results.has_excess:
        caption = "Excess: leak@k minus the retain model's on the same prompts; 0 is luck. Its own scale"
        drawn.append((results.leak_group, caption, partial(excess_figure, results, titled=False)))
    if results.judged:
        caption = "What one greedy answer shows and what sampling finds; least leaking on top"
        drawn.append(("greedy", caption, partial(greedy_figure, results)))
    return [
        {
            "section": section,
            "caption": caption,
            "wide": _svg(draw(narrow=False), f"wide {caption}"),
            "narrow": _svg(draw(narrow=True), f"narrow {caption}"),
        }
        for section, caption, draw in drawn
    ]


def _svg(figure: Any, salt: str) -> str:
    """Inline SVG with text as text, in the page's own colour of ink, its identifiers unlike any other figure's."""
    import matplotlib

    from engine.reporting.figures import INK, STYLE

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _called(model: ModelResult) -> str:
    return "the model" if model.role == "target" else model.name


def _interval(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _experiment_yaml(results: Results) -> str:
    import yaml

    return yaml.safe_dump(results.experiment, sort_keys=False, allow_unicode=True)
