"""Every attack on every model of an experiment, the retain baseline included.

Evaluated models come in, AttackResults by model come out. A model attack gives another model, which is evaluated as the
first was; a prompt attack asks the same model by families of other prompts, reported alone and all jointly.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from benchmarks.base import Benchmark, Decoding, probe_clusters
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import DivergedError, UserError
from engine.evaluation.benchmark_metrics import benchmark_metrics, greedy_metrics
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation, evaluate
from engine.leak.intervals import population_difference
from engine.leak.per_prompt import leaks_of_scores
from engine.pipeline.run import Attacked, EvaluatedModel
from engine.reporting.records import AttackResult, Curve
from engine.robustness.attacks.prompts import JOINT
from engine.robustness.base import Attack, ModelAttack, PromptAttack, Setting
from engine.robustness.joint import origin, pooled
from engine.robustness.reading import attacks_of, reads_of
from engine.stages.base import Stages

THREADS = 16  # they only wait for Ray
Key = tuple[str, str]  # model, attack


class Attacks:
    """The engine's attacks, as a run takes them."""

    def trainings(self, experiment: Experiment, benchmark: Benchmark) -> list[TrainSection]:
        attacks = attacks_of(experiment, benchmark)
        return [section for attack in attacks if (section := attack.training(experiment)) is not None]

    def reads(self, experiment: Experiment, benchmark: Benchmark) -> dict[str, str]:
        return reads_of(attacks_of(experiment, benchmark), benchmark)

    def attack(
        self, stages: Stages, experiment: Experiment, benchmark: Benchmark, models: Sequence[EvaluatedModel]
    ) -> Attacked:
        return attack_models(stages, experiment, benchmark, models) if experiment.attacks else Attacked({}, {})


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What one attack did to one model: by name of the row it makes, an evaluation whose one leak group is what the
    attack is judged by; and the model's utility after it."""

    rows: dict[str, Evaluation]
    utility: float


def attack_models(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, models: Sequence[EvaluatedModel]
) -> Attacked:
    """A result for each model and attack, for each family of a prompt attack. Models side by side."""
    target = next((model.source for model in models if model.role == "target"), None)
    setting = Setting(stages, _headline_alone(experiment), benchmark, target)
    attacks = attacks_of(experiment, benchmark)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {
            (model.name, attack.title): pool.submit(_attacked, setting, attack, model)
            for attack in attacks
            for model in models
        }
        outcomes, failed = _outcomes(futures)
    retain = next((model for model in models if model.role == "retain"), None)
    found: dict[str, list[AttackResult]] = {model.name: [] for model in models}
    for model in models:
        for attack in attacks:
            outcome = outcomes[model.name, attack.title]
            baseline = outcomes[retain.name, attack.title] if retain is not None else None
            if outcome is None:
                continue
            for name in outcome.rows:
                try:
                    found[model.name].append(_result(setting, attack, name, model, outcome, retain, baseline))
                except UserError as error:  # nothing of it has a score, such as where the whole answer is given
                    failed[f"{model.name} {name}"] = str(error)
    return Attacked(found, failed)


def _outcomes(futures: dict[Key, Future[_Outcome | None]]) -> tuple[dict[Key, _Outcome | None], dict[str, str]]:
    """What came of each attack, None where nothing did, and why a model was lost in one."""
    outcomes: dict[Key, _Outcome | None] = {}
    failed: dict[str, str] = {}
    for key, future in futures.items():
        try:
            outcomes[key] = future.result()
        except (DivergedError, UserError) as error:
            outcomes[key], failed[" ".join(key)] = None, str(error)
    return outcomes, failed


def _headline_alone(experiment: Experiment) -> Experiment:
    """The experiment with its first sampled decoding alone, greedy answers for utility, and no search for bounds."""
    first = experiment.headline_decoding
    decodings = tuple(each for each in (first, Decoding(temperature=0.0)) if each is not None)
    sampling = experiment.sampling.model_copy(update={"decoding": decodings})
    return experiment.model_copy(update={"sampling": sampling, "metrics": (experiment.metrics or ())[:1]})


def _attacked(setting: Setting, attack: Attack, model: EvaluatedModel) -> _Outcome | None:
    label = f"{model.name} {attack.title}"
    if isinstance(attack, PromptAttack):
        return _asked(setting, attack, model, label)
    assert isinstance(attack, ModelAttack)
    source = attack.attacked(setting, label, model.source)
    if source is None:
        return None
    judged = copy.copy(setting.benchmark)
    judged.probes = attack.judged(setting.benchmark)
    judged.protocol = judged.protocol.model_copy(update={"attacks": (), "forget_group": None})  # read by nothing here
    evaluation = evaluate(setting.stages, setting.experiment, judged, source, label, bounds=False)
    protocol = judged.protocol
    beside = {name: evaluation.greedy_means(name) for name in greedy_metrics(judged)}
    metrics, _ = benchmark_metrics(judged, beside, evaluation.likelihoods, None)
    utility = evaluation.utility(judged, metrics)
    return _Outcome({attack.title: _one_group(evaluation, protocol.leak_group, attack.title)}, utility)


def _asked(setting: Setting, attack: PromptAttack, model: EvaluatedModel, label: str) -> _Outcome:
    """The model's own utility stands: its weights are as they were."""
    families = attack.asked(setting.benchmark, setting.experiment.model.endpoint is not None)
    asked = copy.copy(setting.benchmark)
    asked.probes = [probe for probes in families.values() for probe in probes]
    asked.choices = ()
    asked.protocol = asked.protocol.model_copy(update={"attacks": (), "model_utility": {}, "forget_group": None})
    evaluation = dataclasses.replace(
        evaluate(setting.stages, setting.experiment, asked, model.source, label, bounds=False),
        clusters=probe_clusters(setting.benchmark),  # rows are known by the prompts that were attacked
    )
    rows = {}
    for family, probes in families.items():
        row = _one_group(evaluation, probes[0].group, name := f"{attack.title}-{family}")
        rows[name] = dataclasses.replace(row, prompt_ids={name: [origin(each) for each in row.prompt_ids[name]]})
    if len(rows) > 1 and (joint := _joint(setting, evaluation, f"{attack.title}-{JOINT}")) is not None:
        rows[f"{attack.title}-{JOINT}"] = joint
    return _Outcome(rows, model.utility)


def _one_group(evaluation: Evaluation, group: str, name: str) -> Evaluation:
    """The evaluation with one of its leak groups alone, under another name."""
    leaks = {(name, metric, decoding): each for (of, metric, decoding), each in evaluation.leaks.items() if of == group}
    return dataclasses.replace(evaluation, leaks=leaks, prompt_ids={name: evaluation.prompt_ids[group]}, known={})


def _joint(setting: Setting, evaluation: Evaluation, name: str) -> Evaluation | None:
    """All families as one: k samples are drawn at random over the families, the prompts that all of them have; None
    where there are none."""
    ((_, metric, decoding), *_) = evaluation.leaks
    scores = evaluation.sampling(decoding).scores(metric)
    joint = pooled({group: scores[group] for group in evaluation.prompt_ids})
    if not joint.prompt_ids:
        return None
    k, confidence = np.array(setting.experiment.leak.k), setting.experiment.leak.confidence
    leaks = {(name, metric, decoding): leaks_of_scores(joint.scores, k, confidence)}
    return dataclasses.replace(evaluation, leaks=leaks, prompt_ids={name: joint.prompt_ids}, known={})


def _result(
    setting: Setting,
    attack: Attack,
    name: str,
    model: EvaluatedModel,
    outcome: _Outcome,
    retain: EvaluatedModel | None,
    baseline: _Outcome | None,
) -> AttackResult:
    """The row `name` of what an attack did to a model. UserError where nothing of it has a score."""
    evaluation = outcome.rows[name]
    other = baseline.rows[name] if baseline is not None else None
    (curve,) = curves(setting.experiment, evaluation, other)
    change = _change(setting, model, evaluation)
    taught = _change(setting, retain, other) if retain is not None and other is not None else None
    judged = model.role not in ("target", "retain") or (model.role == "target" and not setting.experiment.methods)
    return AttackResult(
        attack=name,
        curve=curve,
        utility=outcome.utility,
        change=change.value,
        change_low=change.low,
        change_high=change.high,
        uninformative=judged and taught is not None and _uninformative(curve, taught),
        done=attack.done(name.removeprefix(attack.title).removeprefix("-")),
        judges=attack.judges,
        stages=evaluation.stages,
    )


@dataclasses.dataclass(frozen=True)
class _Change:
    """leak@k after an attack minus before it, over the same prompts, by k; None where no prompt has both."""

    value: list[float] | None = None
    low: list[float] | None = None
    high: list[float] | None = None


def _change(setting: Setting, model: EvaluatedModel, after: Evaluation) -> _Change:
    ((name, metric, decoding), leaks) = next(iter(after.leaks.items()))
    group = setting.benchmark.protocol.leak_group
    before = model.evaluation.leaks.get((group, metric, decoding))
    if before is None:
        return _Change()
    row_of = {prompt_id: row for row, prompt_id in enumerate(model.evaluation.prompt_ids[group])}
    rows = np.array([row_of[prompt_id] for prompt_id in after.prompt_ids[name]])
    both = ~(np.isnan(leaks.values) | np.isnan(before.values[rows])).any(axis=1)
    if not both.any():
        return _Change()
    clusters = after.clusters_of(name).part(np.asarray(both))
    difference = population_difference(leaks.values[both], before.values[rows][both], clusters, leaks.values.shape[1])
    low, high = difference.ends(1 - setting.experiment.leak.confidence)
    return _Change(difference.value.tolist(), low.tolist(), high.tolist())


def _uninformative(curve: Curve, taught: _Change) -> bool:
    """Whether the attack raised the retain model's own leak and the model cannot be told from it, at the largest k."""
    raised = taught.low is not None and taught.low[-1] > 0
    return raised and curve.excess_low is not None and curve.excess_low[-1] <= 0
