"""The attacks that a file names, read and checked before any work starts.

Sections of an experiment come in, Attacks come out; every mistake is a UserError of one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.config.sections import AttackSection
from engine.errors import UserError, known, validated
from engine.robustness.attacks import ATTACKS
from engine.robustness.base import Attack


def attack_of(section: AttackSection, where: str, experiment: Experiment, benchmark: Benchmark) -> Attack:
    """The attack of one section, with the experiment's seed unless it has its own. where: names it in errors."""
    known(section.name, ATTACKS, f"{where}.name", "leakatk attacks")
    attack: Attack = validated(
        ATTACKS[section.name], {"seed": experiment.seed} | section.options, f"{where} ({section.name})"
    )
    if experiment.model.endpoint is not None and not attack.on_servers:
        raise UserError(f"{where}: {section.name} changes weights, which a model behind a server does not give")
    attack.check(experiment, benchmark)
    return attack


def reads_of(attacks: Sequence[Attack], benchmark: Benchmark) -> dict[str, str]:
    """What attacks read and are, beside their options: the content of files and models, versions from 2 on."""
    found = {f"{attack.title}: {key}": by for attack in attacks for key, by in attack.reads(benchmark).items()}
    return found | {f"{attack.title}: version": str(attack.version) for attack in attacks if attack.version > 1}


def attacks_of(experiment: Experiment, benchmark: Benchmark) -> list[Attack]:
    """All attacks of an experiment."""
    if experiment.attacks and experiment.requests is not None and len(experiment.requests) > 1:
        raise UserError(
            "attacks: of models that unlearn request after request none is final; leave out requests, or attack one "
            "model by `leakatk evaluate --attacks`"
        )
    found: list[Attack] = []
    for index, section in enumerate(experiment.attacks):
        where = f"attacks[{index}]"
        attack = attack_of(section, where, experiment, benchmark)
        if attack.title in [each.title for each in found]:
            raise UserError(f"{where}: {attack.title} stands there twice; leave one out, or give it a `label`")
        found.append(attack)
    return found
