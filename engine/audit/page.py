"""An audit as one page that prints on A4: an Audit comes in, HTML without anything from elsewhere comes out.

Texts are escaped by the template. Knows nothing of stores or of how numbers were made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from engine.audit.claim import LEVELS, Audit, AuditedModel, Finding
from engine.audit.findings import counted_decodings
from engine.audit.sentences import judged, rounded_up
from engine.reporting.formatting import Estimate, interval_text, number_text

FEW_MODELS = 3  # with more of them, fewer prompts of each are named: it is to stay two pages
MOST_STAGES = 8  # whose digests stand on the page too
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclasses.dataclass(frozen=True)
class Row:
    """One finding at the first and the largest k, as text."""

    model: str
    what: str
    leak_1: str
    leak: str
    here: str
    bound: str
    excess: str
    aside: bool


def audit_page(audit: Audit) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    about = judged(audit.models)
    return environment.get_template(TEMPLATE.name).render(
        audit=audit,
        asked=audit.asked,
        levels=LEVELS,
        ks=audit.asked.k,
        judged=about,
        rows=[_row(audit, model, finding) for model in audit.models for finding in model.findings],
        decodings=", ".join(each.name for each in counted_decodings(audit.asked)),
        stages=_digests(audit),
        number=number_text,
        settings=_settings,
        named=10 if len(about) <= FEW_MODELS else 3,
        digest=audit.as_json()["sha256"],
    )


def _row(audit: Audit, model: AuditedModel, finding: Finding) -> Row:
    def at(
        place: int, values: list[float] | None, low: list[float] | None, high: list[float] | None
    ) -> Estimate | None:
        return None if values is None or low is None or high is None else (values[place], low[place], high[place])

    decoding = f", {finding.decoding}" if len(counted_decodings(audit.asked)) > 1 else ""
    excess = at(-1, finding.excess, finding.excess_low, finding.excess_high) if model.role != "retain" else None
    here = at(-1, finding.leak, finding.here_low, finding.here_high)
    return Row(
        model=model.name,
        what=f"after {finding.attack}" if finding.attack else finding.group.replace("_", " ") + decoding,
        leak_1=number_text(finding.leak[0]),
        leak=interval_text(at(-1, finding.leak, finding.low, finding.high)),
        here=f"{here[1]:.3f} to {here[2]:.3f}" if here is not None else "",
        bound=rounded_up(finding.bound[-1]) if finding.bound is not None else "",
        excess=interval_text(excess, ""),
        aside=model not in judged(audit.models),
    )


def _settings(values: Mapping[str, object]) -> str:
    """A method or an attack with its settings in words, without those that are not set."""
    rest = [(key, value) for key, value in values.items() if key != "name" and value is not None]
    words = [f"{key} {_settings(value) if isinstance(value, Mapping) else value}" for key, value in rest]
    return f"{values.get('name', '')} ({', '.join(words)})".strip() if words else str(values.get("name", ""))


def _digests(audit: Audit) -> list[tuple[str, str]]:
    """(what, digest) of the models that the page does not name before, and of the samples and scores that the numbers
    are of as far as a page has room."""
    others = [model for model in audit.models if model not in judged(audit.models)]
    found = [(f"model {model.name}", model.identity or "not known: answers from a log") for model in others]
    stages = [
        (f"{model.name}: {name}", stage.sha256)
        for model in audit.models
        for name, stage in model.stages.items()
        if name != "model"
    ]
    return [*found, *(stages if len(stages) <= MOST_STAGES else [])]
