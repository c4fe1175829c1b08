"""The numbers of an audit, from the scores of every sample: the same code makes them and checks them.

Scores by stage folder come in, Findings and the prompts that leak most come out. Knows nothing of where scores come
from: out of the store where an audit is made, out of the generations, scored again, where it is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.base import Decoding, is_leak_group
from engine.audit.claim import Asked, Finding, Leaked
from engine.config.experiment import Experiment
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation, Key
from engine.evaluation.stored import evaluation_of_scores
from engine.reporting.records import Curve
from engine.reporting.results import scores_stage
from engine.robustness.attacks.prompts import JOINT
from engine.robustness.joint import origin, pooled
from engine.stages.score import GroupScores

MOST_LEAKED = 10
ScoresOf = Callable[[str], Mapping[str, GroupScores]]  # of a stage's folder below the store: scores by group


@dataclasses.dataclass(frozen=True)
class ModelStages:
    """A model's stage folders by name, and those of each attack on it."""

    name: str
    role: str
    stages: Mapping[str, str]
    attacks: Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found of one model."""

    findings: list[Finding]
    leaked: list[Leaked]


def find(asked: Asked, models: Sequence[ModelStages], clusters: Mapping[str, int], scores_of: ScoresOf) -> list[Found]:
    """The findings of each model. clusters: the number of each prompt's cluster, by its id."""
    experiment = _experiment(asked)
    labels = {prompt_id: str(number) for prompt_id, number in clusters.items()}

    def evaluated(scores: Mapping[Key, GroupScores]) -> Evaluation:
        return evaluation_of_scores(experiment, scores, labels)

    plain = {model.name: evaluated(_plain_scores(asked, model.stages, scores_of)) for model in models}
    attacked = {
        (model.name, attack): evaluated(_attack_scores(asked, attack, stages, scores_of))
        for model in models
        for attack, stages in model.attacks.items()
    }
    retain = next((model.name for model in models if model.role == "retain"), None)
    found = []
    for model in models:
        baseline = plain[retain] if retain is not None else None
        findings = [_finding("", curve) for curve in curves(experiment, plain[model.name], baseline)]
        for attack in model.attacks:
            beside = attacked.get((retain, attack)) if retain is not None else None
            findings += [_finding(attack, curve) for curve in curves(experiment, attacked[model.name, attack], beside)]
        found.append(Found(findings, _leaked(asked, plain[model.name], baseline if model.name != retain else None)))
    return found


def _experiment(asked: Asked) -> Experiment:
    """As much of the experiment as the numbers depend on."""
    return Experiment.model_validate(
        {
            "benchmark": {"name": "audit"},
            "sampling": {"n": asked.n, "adaptive": asked.adaptive, "decoding": asked.decodings},
            "metrics": [asked.metric],
            "leak": {"k": asked.k, "confidence": asked.confidence},
        }
    )


def counted_decodings(asked: Asked) -> list[Decoding]:
    """The decodings that leak@k is taken of: the sampled ones, greedy where nothing was sampled."""
    decodings = [Decoding(**each) for each in asked.decodings]
    return [each for each in decodings if not each.greedy] or decodings


def _plain_scores(asked: Asked, stages: Mapping[str, str], scores_of: ScoresOf) -> dict[Key, GroupScores]:
    """Scores by group, metric and decoding, the rounds of each prompt's samples put together."""
    found: dict[Key, GroupScores] = {}
    for decoding in counted_decodings(asked):
        for group, scores in _rounds(stages, decoding.name, asked.metric, scores_of).items():
            found[group, asked.metric, decoding.name] = scores
    return found


def _rounds(stages: Mapping[str, str], decoding: str, metric: str, scores_of: ScoresOf) -> dict[str, GroupScores]:
    rounds: list[Mapping[str, GroupScores]] = []
    while (stage := scores_stage(decoding, metric, len(rounds) + 1)) in stages:
        rounds.append(scores_of(stages[stage]))
    return {
        group: GroupScores(own.prompt_ids, np.concatenate([each[group].scores for each in rounds], axis=1))
        for group, own in (rounds[0] if rounds else {}).items()
        if is_leak_group(group)
    }


def _attack_scores(asked: Asked, attack: str, stages: Mapping[str, str], scores_of: ScoresOf) -> dict[Key, GroupScores]:
    """The scores that a row of attacks is of, under its own name as group, by the ids of the prompts they stand for."""
    decoding = counted_decodings(asked)[0].name
    by_group = _rounds(stages, decoding, asked.metric, scores_of)
    if attack.endswith(f"-{JOINT}"):
        scores = pooled(by_group)
    else:
        families = {_family(of_group): of_group for of_group in by_group.values()}
        named = [family for family in families if family and attack.endswith(f"-{family}")]
        scores = by_group[asked.leak_group] if not named else families[max(named, key=len)]
        if named:
            scores = GroupScores([origin(each) for each in scores.prompt_ids], scores.scores)
    return {(attack, asked.metric, decoding): scores}


def _family(scores: GroupScores) -> str:
    """The family of a prompt attack's prompts, PROMPT~FAMILY, in whose rows the attack is TITLE-FAMILY; else empty."""
    return scores.prompt_ids[0].rpartition("~")[2] if "~" in scores.prompt_ids[0] else ""


def _finding(attack: str, curve: Curve) -> Finding:
    same = {field.name for field in dataclasses.fields(Finding)} & {field.name for field in dataclasses.fields(Curve)}
    values = {name: getattr(curve, name) for name in same - {"clusters"}}
    here = curve.these
    return Finding(
        attack=attack,
        clusters=curve.prompts if curve.clusters is None else curve.clusters,
        here_low=here.low if here is not None else None,
        here_high=here.high if here is not None else None,
        any_prompt=curve.prompt_bound,
        **values,
    )


def _leaked(asked: Asked, evaluation: Evaluation, baseline: Evaluation | None) -> list[Leaked]:
    """The prompts of the leak group that leak most, by excess where there is a retain model, then by the mean score of
    their samples."""
    key = (asked.leak_group, asked.metric, counted_decodings(asked)[0].name)
    leak_P = evaluation.leaks[key].values[:, -1]
    excess_P = leak_P - baseline.leaks[key].values[:, -1] if baseline is not None else leak_P
    means_P = np.nan_to_num(evaluation.leaks[key].means)
    order = np.lexsort((-means_P, -np.nan_to_num(excess_P, nan=-np.inf)))
    ids = evaluation.prompt_ids[asked.leak_group]
    return [
        Leaked(ids[index], float(leak_P[index]), float(excess_P[index]) if baseline is not None else None)
        for index in order[:MOST_LEAKED].tolist()
        if leak_P[index] > 0 and excess_P[index] > 0
    ]
