"""What follows from an audit's numbers and what does not, in plain sentences.

Records come in, sentences come out: they say no number that the records do not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.audit.claim import Asked, AuditedModel, Finding
from engine.reporting.results import GREEDY

ROLES = ("unlearned", "control")


def judged(models: Sequence[AuditedModel]) -> list[AuditedModel]:
    """The models that an audit is about: what was unlearned, or the given model where nothing was."""
    return [each for each in models if each.role in ROLES] or [each for each in models if each.role != "retain"]


def follows(asked: Asked, models: Sequence[AuditedModel]) -> list[str]:
    """For each judged model, what its samples show, with confidence: bound, interval, excess, attacks."""
    return [" ".join([*_of_model(asked, model), *_of_attacks(asked, model)]) for model in judged(models)]


def _of_model(asked: Asked, model: AuditedModel) -> list[str]:
    finding, sure = model.headline(asked), f"{asked.confidence:.0%}"
    k = finding.k[-1]
    what = f"leak@{k} of {model.name}"
    others = "other prompts" if finding.clusters == finding.prompts else "prompts of other clusters"
    interval = f"for {others} like these {_three(finding.low[-1])} to {_three(finding.high[-1])}"
    if finding.decoding == GREEDY:
        sentences = [
            f"The greedy answers of {model.name} to these {finding.prompts} prompts score {_three(finding.leak[-1])}, "
            f"and asked again would score the same; {interval} ({sure} interval)."
        ]
    else:
        sentences = []
        if finding.bound is not None:
            bound = rounded_up(finding.bound[-1])
            sentences.append(f"With {sure} confidence {what} on these {finding.prompts} prompts is at most {bound}.")
        if finding.here_low is not None and finding.here_high is not None:
            interval += f", for these very prompts {_three(finding.here_low[-1])} to {_three(finding.here_high[-1])}"
        sentences.append(f"The estimate is {_three(finding.leak[-1])}; {interval} ({sure} intervals).")
    if (excess := _excess(finding)) is not None:
        estimate, low, high = excess
        shown = f"{_three(estimate)} ({_three(low)} to {_three(high)})"
        if low > 0:
            sentences.append(f"{model.name} leaks more than the retain model, which never saw the data: by {shown}.")
        else:
            sentences.append(
                f"{model.name} cannot be told from the retain model, which never saw the data: it leaks {shown} more."
            )
    return sentences


def _of_attacks(asked: Asked, model: AuditedModel) -> list[str]:
    attacked = [each for each in model.findings if each.attack]
    if not attacked:
        return []
    worst = max(attacked, key=lambda each: each.leak[-1])
    sentence = (
        f"Of {len(attacked)} attacks {worst.attack} gets most out of {model.name}: leak@{worst.k[-1]} "
        f"{_three(worst.leak[-1])} ({_three(worst.low[-1])} to {_three(worst.high[-1])})"
    )
    with_retain = [each for each in attacked if _excess(each) is not None]
    more = [each.attack for each in with_retain if each.excess_low is not None and each.excess_low[-1] > 0]
    if with_retain:
        told = ", ".join(more) if more else "none of them"
        sentence += f"; more than out of the retain model under the same attack: {told}"
    return [f"{sentence}."]


def does_not_follow(asked: Asked, level: int, models: Sequence[AuditedModel]) -> list[str]:
    """The limits of what was done."""
    finding = judged(models)[0].headline(asked)
    k, sure = finding.k[-1], f"{asked.confidence:.0%}"
    longest = f"{asked.max_new_tokens} tokens" if asked.max_new_tokens else "the log holds"
    found = [
        f"This says nothing of prompts that were not asked, of other decodings, of longer answers than {longest}, or "
        f"of more than k = {k} tries at a prompt.",
        f"leak@{k} is a mean over prompts: a low mean does not say that no prompt leaks.{_any_prompt(asked, models)}",
        f"What counts as a leak is what {asked.metric} sees; the same knowledge in other words may escape it.",
        f"Each statement holds by itself with {sure} confidence; not all of them together.",
    ]
    if level == 0:
        found.insert(0, "Nothing was sampled: one greedy answer a prompt does not tell what repeated tries would show.")
    if level < 2:
        found.append("Nothing was attacked: fine-tuning, quantising or asking otherwise may bring back what is hidden.")
    else:
        found.append("Of attacks that were not made, or made with a larger budget, nothing is known.")
    if all(_excess(each.headline(asked)) is None for each in judged(models)):
        found.append(
            "There was no retain model: how much of a score is guessing, such as a model that never saw the data does, "
            "is unknown."
        )
    return found


def _any_prompt(asked: Asked, models: Sequence[AuditedModel]) -> str:
    """How much one prompt may leak by itself, of the model whose bound is highest."""
    bounds = [
        (finding.any_prompt[0], model.name, finding.k[0])
        for model in judged(models)
        if (finding := model.headline(asked)).any_prompt is not None and finding.decoding != GREEDY
    ]
    if not bounds:
        return ""
    bound, name, k = max(bounds)
    return f" Of {name}, any one prompt's own leak@{k} may be as high as {rounded_up(bound)}."


def _excess(finding: Finding) -> tuple[float, float, float] | None:
    if finding.excess is None or finding.excess_low is None or finding.excess_high is None:
        return None
    return finding.excess[-1], finding.excess_low[-1], finding.excess_high[-1]


def _three(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")


def rounded_up(value: float) -> str:
    """A bound, rounded up: it holds as it is written."""
    return _three(min(1.0, math.ceil(round(value * 1000, 9)) / 1000))
