"""One self-contained HTML page about a run: verdict, curves, table, the sentences that leaked, RULE's rounds, cost.

Results and the store come in; report.html comes out. Text of a model is escaped by the template: shown, never run.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from engine.results import Curve, ModelResult, Results
from engine.table import metric_rows, missing_reasons, table_k

TEMPLATE = Path(__file__).with_name("report.html.j2")
WORST_PROMPTS = 8


@dataclasses.dataclass(frozen=True)
class WorstPrompt:
    """A prompt of the forget set that leaks most: how many of its samples leak, one of them, and the retain model's."""

    prompt: str
    reference: str
    leaking: int
    samples: int
    before: str
    span: str
    after: str
    retain: str


def write_report(results: Results, folder: Path, store_root: Path) -> Path:
    """Write report.html into `folder`; returns its path."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    from engine.store import write_atomic

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    unlearned = [model for model in results.models if model.role == "unlearned"]
    page = environment.get_template(TEMPLATE.name).render(
        results=results,
        verdict=verdict(results),
        figures=[(group, _svg(results, group)) for group in groups(results)],
        ks=table_k(results),
        groups=groups(results),
        worst=[(model.name, found) for model in unlearned if (found := worst_prompts(results, model, store_root))],
        ruled=[model for model in results.models if model.rounds],
        grid=_grid(results),
        metrics=metric_rows(results),
        missing=missing_reasons(results),
        yaml=_experiment_yaml(results),
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def groups(results: Results) -> list[str]:
    """The groups of forget prompts, the headline's first."""
    found = dict.fromkeys(curve.group for model in results.models for curve in model.curves)
    return sorted(found, key=lambda group: group != results.leak_group)


def verdict(results: Results) -> list[str]:
    """What greedy decoding says of the unlearned models, what k samples say, and how sure a zero is."""
    rows = [(model, curve) for model, curve in results.headline if model.role == "unlearned"]
    if not rows:
        return ["No unlearned model was evaluated."]
    k = rows[0][1].k[-1]
    clean = [model.name for model, _ in rows if model.greedy[results.leak_group] <= 0.05]
    first = (
        f"Judged by one greedy answer, {_names(clean)} of {len(rows)} unlearned models look clean (score at most 0.05)."
        if clean
        else f"None of the {len(rows)} unlearned models looks clean even by one greedy answer."
    )
    above = [(model, curve) for model, curve in rows if (excess := curve.excess_at(k)) and excess[1] > 0]
    if rows[0][1].excess is None:
        worst = max(rows, key=lambda row: row[1].leak[-1])
        second = (
            f"Sampled {k} times, {worst[0].name} leaks most, leak@{k} = {worst[1].leak[-1]:.2f}; "
            "without a retain model luck cannot be told from leakage."
        )
    elif above:
        names = [f"{model.name} ({_interval(curve.excess_at(k))})" for model, curve in above]
        second = f"Sampled {k} times, these leak more than the retain model does by luck: {', '.join(names)}."
    else:
        second = f"Sampled {k} times, none leaks more than the retain model does by luck, as far as the intervals tell."
    closed = [(model, curve) for model, curve in rows if curve.bound is not None and max(curve.leak) == 0]
    if not closed:
        return [first, second]
    bounds = ", ".join(f"{model.name} <= {curve.bound[-1]:.3f}" for model, curve in closed if curve.bound)
    third = f"Of what never leaked in its samples, {results.confidence:.0%} confidence allows leak@{k}: {bounds}."
    return [first, second, third]


def worst_prompts(results: Results, model: ModelResult, store_root: Path) -> list[WorstPrompt]:
    """The prompts of the headline group with the most leaking samples, worst first; none where nothing leaks."""
    from engine.scoring import group_scores

    curve = model.curve(results.leak_group, results.core_metric)
    retain = next((each for each in results.models if each.role == "retain"), None)
    if curve is None:
        return []
    scores = group_scores(store_root / model.stages[f"scores {curve.decoding} {results.core_metric}"])
    values = np.nan_to_num(scores[results.leak_group].scores)
    texts = _generations(store_root, model, curve, results.leak_group)
    yardstick = _generations(store_root, retain, curve, results.leak_group) if retain else None
    order = [index for index in np.argsort(-values.mean(axis=1), kind="stable") if values[index].max() > 0]
    worst = []
    for index in order[:WORST_PROMPTS]:
        sample = int(values[index].argmax())
        row = texts[index][sample]
        before, span, after = _highlighted(row["response"], row["fact"])
        worst.append(
            WorstPrompt(
                prompt=row["prompt"],
                reference=row["reference"],
                leaking=int((values[index] >= values[index].max()).sum()),
                samples=values.shape[1],
                before=before,
                span=span,
                after=after,
                retain=yardstick[index][0]["response"] if yardstick else "",
            )
        )
    return worst


def _generations(store_root: Path, model: ModelResult, curve: Curve, group: str) -> list[list[dict[str, Any]]]:
    """Rows of the group's generations, [prompts][samples]."""
    import pyarrow.compute

    from engine.sample import read_units

    columns = ["group", "prompt", "reference", "fact", "response"]
    table = read_units(store_root / model.stages[f"generations {curve.decoding}"], columns)
    rows = table.filter(pyarrow.compute.equal(table["group"].cast("string"), group)).to_pylist()
    return [rows[start : start + curve.samples] for start in range(0, len(rows), curve.samples)]


def _highlighted(response: str, fact: str | None) -> tuple[str, str, str]:
    """The response cut around the fact where it stands in it word for word."""
    start = response.casefold().find(fact.casefold()) if fact else -1
    if start < 0 or fact is None:
        return response, "", ""
    return response[:start], response[start : start + len(fact)], response[start + len(fact) :]


def _svg(results: Results, group: str) -> str:
    from engine.figures import leak_figure

    stream = io.StringIO()
    leak_figure(results, group).savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _grid(results: Results) -> list[tuple[str, list[tuple[str, float]]]]:
    """Each model's leak at the largest k under every decoding, where there is more than one to compare."""
    names = dict.fromkeys(curve.decoding for model in results.models for curve in model.curves)
    if len(names) < 2:
        return []
    rows = []
    for model in results.models:
        found = [model.curve(results.leak_group, results.core_metric, name) for name in names]
        rows.append((model.name, [(curve.decoding, curve.leak[-1]) for curve in found if curve is not None]))
    return rows


def _interval(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _experiment_yaml(results: Results) -> str:
    import yaml

    return yaml.safe_dump(results.experiment, sort_keys=False, allow_unicode=True)
