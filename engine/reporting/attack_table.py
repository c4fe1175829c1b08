"""What attacks recovered, as rows, sentences and a terminal table, from Results. Knows nothing of how it was made."""

from __future__ import annotations

import dataclasses

from engine.jsonl import JsonObject
from engine.reporting.formatting import Estimate, interval_text
from engine.reporting.records import AttackResult
from engine.reporting.results import ModelResult, Results
from engine.reporting.terminal import plain_table, wide_console

NO_ATTACK = "none"


@dataclasses.dataclass(frozen=True)
class AttackRow:
    """One model under one attack at the largest k; attack "none" is the model as it is, on all its prompts."""

    model: str
    role: str
    attack: str
    leak: Estimate
    excess: Estimate | None
    change: Estimate | None
    utility: float
    uninformative: bool


def attack_names(results: Results) -> list[str]:
    """The attacks in the experiment's order; a model that one of them means nothing for lacks it."""
    return list(dict.fromkeys(attack.attack for model in results.models for attack in model.attacks))


def attack_rows(results: Results) -> list[AttackRow]:
    """Model by model: a row without attack, then one for each attack. Empty where nothing was attacked."""
    rows = []
    for model, curve in results.headline:
        if not model.attacks:
            continue
        k = curve.k[-1]
        plain = curve.at(k)
        assert plain is not None
        excess = curve.excess_at(k) if model.role != "retain" else None
        rows.append(AttackRow(model.name, model.role, NO_ATTACK, plain, excess, None, model.utility, False))
        rows += [_row(model, attack) for attack in model.attacks]
    return rows


def _row(model: ModelResult, attack: AttackResult) -> AttackRow:
    k = attack.curve.k[-1]
    leak = attack.curve.at(k)
    assert leak is not None
    return AttackRow(
        model=model.name,
        role=model.role,
        attack=attack.attack,
        leak=leak,
        excess=attack.curve.excess_at(k) if model.role != "retain" else None,
        change=attack.change_at(k),
        utility=attack.utility,
        uninformative=attack.uninformative,
    )


def headlines(results: Results) -> list[str]:
    """One sentence an attack: what the unlearned model that gives most gives, beside the retain model."""
    retain = results.retain
    sentences = []
    for name in attack_names(results):
        found = [
            (model, attack)
            for model in results.models
            for attack in model.attacks
            if attack.attack == name and model.role == "unlearned"
        ]
        if not found:
            continue
        model, attack = max(found, key=lambda pair: pair[1].curve.leak[-1])
        k = attack.curve.k[-1]
        sentence = f"Under {name}, {model.name} gives most: leak@{k} {attack.curve.leak[-1]:.2f}"
        if (change := attack.change_at(k)) is not None:
            sentence += f" ({change[0]:+.2f})"
        beside = next((each for each in retain.attacks if each.attack == name), None) if retain is not None else None
        if beside is not None:
            sentence += f", the retain model {beside.curve.leak[-1]:.2f}"
        if attack.uninformative:
            sentence += "; it cannot be told from the retain model, which the attack taught as much: uninformative"
        sentences.append(f"{sentence}.")
    return sentences


def attacks_json(model: ModelResult) -> list[JsonObject]:
    """A model's attacks as `--json` gives them: leak, excess and change as [estimate, low, high] by k."""
    return [
        {
            "attack": attack.attack,
            "leak": {str(k): list(attack.curve.at(k) or ()) for k in attack.curve.k},
            "excess": {str(k): list(each) for k in attack.curve.k if (each := attack.curve.excess_at(k)) is not None},
            "change": {str(k): list(each) for k in attack.curve.k if (each := attack.change_at(k)) is not None},
            "utility": attack.utility,
            "uninformative": attack.uninformative,
            "prompts": attack.curve.prompts,
        }
        for attack in model.attacks
    ]


def print_attacks(results: Results) -> None:
    """A row for each model and attack: leak@k, excess over the retain model under the same attack, change, utility."""
    rows = attack_rows(results)
    if not rows:
        return
    k = results.headline[0][1].k[-1]
    table = plain_table(f"after attacks: leak@{k} on {results.leak_group} ({results.core_metric})")
    table.add_column("model", no_wrap=True)
    table.add_column("attack", no_wrap=True)
    for name in (f"leak@{k}", f"excess@{k}", "change"):
        table.add_column(name, justify="right")
    table.add_column("utility", justify="right")
    table.add_column("")
    for row in rows:
        table.add_row(
            row.model if row.attack == NO_ATTACK else "",
            row.attack,
            interval_text(row.leak),
            interval_text(row.excess, ""),
            interval_text(row.change, ""),
            f"{row.utility:.3f}",
            "uninformative" if row.uninformative else "",
        )
    console = wide_console()
    console.print(table)
    for sentence in headlines(results):
        console.print(sentence, highlight=False, markup=False)
