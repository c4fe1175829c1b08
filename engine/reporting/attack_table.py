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
    """The attacks in the experiment's order; a model that one of them means nothing for, or failed on, lacks it."""
    models = sorted(results.models, key=lambda model: -len(model.attacks))  # one that has all comes first
    return list(dict.fromkeys(attack.attack for model in models for attack in model.attacks))


def attack_rows(results: Results) -> list[AttackRow]:
    """Model by model: a row without attack, then one for each attack. Empty where nothing was attacked."""
    rows = []
    for model, curve in results.headline:
        if not model.attacks or model.utility is None:
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


def headline(results: Results) -> list[str]:
    """What attacks say of the run in at most two sentences: the most that one got out of a judged model while telling
    something, and which models it could be told of. Empty where no such model was attacked."""
    told = [(model, attack) for model, attack in _judged(results) if not attack.uninformative]
    worst = max(told, key=lambda pair: _beyond(pair[1]), default=None)
    sentences = [_sentence(results, *worst)] if worst is not None else []
    return [*sentences, *who_stays_forgotten(results)]


def headlines(results: Results) -> list[str]:
    """One sentence an attack: what the judged model that gives most gives, beside the retain model."""
    worst: dict[str, tuple[ModelResult, AttackResult]] = {}
    for model, attack in _judged(results):
        if attack.attack not in worst or attack.curve.leak[-1] > worst[attack.attack][1].curve.leak[-1]:
            worst[attack.attack] = (model, attack)
    return [_sentence(results, *worst[name]) for name in attack_names(results) if name in worst]


def judged_models(results: Results) -> list[ModelResult]:
    """The models that attacks are told of: the unlearned ones without controls, or the one that was given."""
    return [model for model, _ in results.judged if model.role != "control"]


def _judged(results: Results) -> list[tuple[ModelResult, AttackResult]]:
    return [(model, attack) for model in judged_models(results) for attack in model.attacks]


def _beyond(attack: AttackResult) -> float:
    """The excess over the retain model at the largest k, leak@k itself without one."""
    return attack.curve.excess[-1] if attack.curve.excess else attack.curve.leak[-1]


def _sentence(results: Results, model: ModelResult, attack: AttackResult) -> str:
    """After 50 steps on 10% of the facts, npo gives back 0.41 of the others in 128 samples (0.05 before), ..."""
    done, k = attack.done or f"Under {attack.attack}", attack.curve.k[-1]
    sentence = f"{done}, {model.name} gives back {attack.curve.leak[-1]:.2f} of {attack.judges}"
    sentence += f" in {k} {'samples' if k > 1 else 'sample'}{_before(attack)}"
    retain = results.retain.attacks if results.retain is not None else []
    beside = next((each for each in retain if each.attack == attack.attack), None)
    if beside is not None:
        sentence += f", the retain model {beside.curve.leak[-1]:.2f}{_before(beside)}"
    if attack.uninformative:
        sentence += "; uninformative: the attack raised the retain model too, and intervals do not tell the two apart"
    return f"{sentence}."


def _before(attack: AttackResult) -> str:
    change = attack.change[-1] if attack.change else None
    return f" ({max(0.0, attack.curve.leak[-1] - change):.2f} before)" if change is not None else ""


def who_stays_forgotten(results: Results) -> list[str]:
    """Of how many attacks each judged model gives more than the retain model, as far as the intervals tell."""
    found: dict[str, list[bool]] = {}
    for model, attack in _judged(results):
        if attack.curve.excess_low is not None:
            found.setdefault(model.name, []).append(attack.curve.excess_low[-1] > 0)
    if not found:
        return []
    more = {name: sum(each) for name, each in found.items()}
    gives = [f"{name} ({more[name]} of {len(each)})" for name, each in found.items() if more[name]]
    never = [name for name in found if not more[name]]
    if not gives:
        return [f"Under no attack does {', '.join(never)} give more than the retain model, as far as intervals tell."]
    sentence = f"Attacks under which a model gives more than the retain model does: {', '.join(gives)}"
    return [f"{sentence}; under none, as far as intervals tell: {', '.join(never)}." if never else f"{sentence}."]


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
    for sentence in (*headlines(results), *who_stays_forgotten(results)):
        console.print(sentence, highlight=False, markup=False)
