"""What a search makes small: leak@k of a model as it is, or after an attack.

The objective section of a space comes in, checked against the experiment and its benchmark; the attack itself comes
out. Every mistake is a UserError of one line. Knows nothing of trials.
"""

from __future__ import annotations

from pydantic import field_validator

from benchmarks.base import Benchmark, Probe, is_leak_group
from engine.config.experiment import Experiment
from engine.config.sections import AttackSection, Positive, Section
from engine.errors import UserError
from engine.robustness.base import Attack, ModelAttack
from engine.robustness.reading import attack_of
from engine.search.prompt_split import deciding_prompts


class Objective(Section):
    """What is made small: leak@k at the first decoding, of a model as it is or after an attack.

    k: at most sampling.n; metric: a core metric (None: the benchmark's); group: of prompts (None: the benchmark's leak
    group); excess: above the retain model, which the experiment must have; on the same prompts that is the same number
    less, so the order of trials is that of leak@k; attack: after which leak@k is taken, of the retain model too: a
    name, or a name with its options (`leakatk attacks`); k samples of a prompt attack are spread over its families.
    """

    k: Positive = 64
    metric: str | None = None
    group: str | None = None
    excess: bool = False
    attack: AttackSection | None = None

    @field_validator("attack", mode="before")
    @classmethod
    def _by_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given


def check_objective(objective: Objective, experiment: Experiment, benchmark: Benchmark, where: str) -> None:
    """UserError where the objective cannot be taken in this experiment."""
    n = experiment.sampling.n or 1
    if objective.k > n:
        raise UserError(f"{where}: objective.k: {objective.k} is more than sampling.n = {n}; sample more")
    if objective.metric is not None and objective.metric not in (experiment.metrics or ()):
        metrics = ", ".join(experiment.metrics or ())
        raise UserError(f"{where}: objective.metric: the experiment scores by {metrics}, not {objective.metric}")
    group = objective.group
    if group is not None and not (is_leak_group(group) and benchmark.group(group)):
        groups = ", ".join(dict.fromkeys(probe.group for probe in benchmark.probes if is_leak_group(probe.group)))
        raise UserError(f"{where}: objective.group: no forget prompts {group!r}; {benchmark.name} has {groups}")
    if objective.excess and experiment.model.retain is None and experiment.model.finetune is None:
        raise UserError(f"{where}: objective.excess: the experiment has no retain model; give model.retain")
    if objective.attack is not None:
        _check_attack(objective, experiment, benchmark, where)


def _check_attack(objective: Objective, experiment: Experiment, benchmark: Benchmark, where: str) -> None:
    protocol = benchmark.protocol
    judged = {"metric": protocol.core_metric, "group": protocol.leak_group}
    for key, own in judged.items():
        if getattr(objective, key) not in (None, own):
            raise UserError(f"{where}: objective.{key}: attacks are judged by {own}; leave {key} or attack out")
    attack = objective_attack(objective, experiment, benchmark, f"{where}: objective.attack")
    if not deciding(benchmark, protocol.leak_group, experiment.seed, attack):
        raise UserError(f"{where}: objective.attack: leaves no prompt of the half that decides to judge; show fewer")


def objective_attack(
    objective: Objective, experiment: Experiment, benchmark: Benchmark, where: str = "objective.attack"
) -> Attack | None:
    """The attack that the objective is taken after, None without one."""
    return attack_of(objective.attack, where, experiment, benchmark) if objective.attack is not None else None


def deciding(benchmark: Benchmark, group: str, seed: int, attack: Attack | None) -> list[Probe]:
    """The prompts of a group that a search decides on: those of one half that the attack leaves to judge."""
    chosen = deciding_prompts(benchmark.group(group), seed)
    if isinstance(attack, ModelAttack):
        judged = {probe.id for probe in attack.judged(benchmark)}
        chosen = [probe for probe in chosen if probe.id in judged]
    return chosen
