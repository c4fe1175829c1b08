"""RULE, Robust Unlearning under LEak@k: sample, find what leaks, unlearn that too, until it stops.

The paper's code is not public; this is our reading of arXiv 2511.04934: round 0 unlearns with the base method; every
round then samples the forget prompts from the current model, and what leaks becomes a further forget answer. Calls the
same train, sample and score stages as everything else.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.base import Benchmark, Decoding, Example, Probe
from engine.cluster.units import read_units
from engine.config.experiment import Experiment
from engine.evaluation.jobs import job_for, score
from engine.leak.estimator import leak_at_k
from engine.models.source import ModelSource
from engine.pipeline.alternate_answers import alternates_like
from engine.reporting.records import RuleRound
from engine.stages.base import Stages, source_of
from engine.stages.reference import ReferenceJob, read_reference
from engine.stages.sample import SampleJob
from engine.stages.score import group_scores
from engine.store.store import FinishedStage
from engine.train.job import TrainJob
from engine.train.launch import train
from engine.train.sharded_reference import reference_stage

ROUND_SEED = 1_000_003  # rounds draw other samples than the evaluation does
TRAINING_GROUP = "forget_training"


@dataclasses.dataclass(frozen=True)
class Leaks:
    """What one sampling of the forget prompts found."""

    leak_at_m: float
    leak: dict[str, float]
    leaking_samples: int
    failed: int
    pool: tuple[Example, ...]
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class RuleRun:
    """The last round's training, a record of every round, and the steps, tokens and seconds that it all took."""

    stage: FinishedStage
    rounds: list[RuleRound]
    steps: int
    tokens: int
    seconds: float


class Rule:
    """RULE over one base method within one experiment.

    job: the base method's training (round 0). rule: the validated methods.rule.Rule. retain: the retain model whose own
    leak@m is the default tolerance; 0 without one.
    """

    def __init__(
        self,
        stages: Stages,
        experiment: Experiment,
        benchmark: Benchmark,
        label: str,
        job: TrainJob,
        rule: Any,
        retain: ModelSource | None,
    ) -> None:
        self.stages, self.experiment, self.benchmark, self.label = stages, experiment, benchmark, label
        self.rule = rule
        self.base = dataclasses.replace(job, keep_state=True)
        self.metric = rule.metric or benchmark.protocol.core_metric
        self.probes = [
            Probe(each.id, each.question, each.answer, TRAINING_GROUP, fact) for each, fact in self._with_facts()
        ]
        self.retain = retain

    def run(self) -> RuleRun:
        """Rounds until leak@m is at or below the tolerance, or the rounds are used up."""
        stage = train(self.stages, f"{self.label} base", self.base)
        steps, tokens, seconds = stage.facts["steps"], 0, stage.facts["seconds"]
        tolerance = self._tolerance()
        pool: dict[tuple[str, str], Example] = {}
        rounds: list[RuleRound] = []
        for number in range(1, self.rule.rounds + 1):
            leaks = self._find_leaks(source_of(stage), number)
            utility = self._utility(source_of(stage), number)
            tokens, seconds = tokens + leaks.tokens, seconds + leaks.seconds
            pool = self._enlarged(pool, leaks.pool)
            rounds.append(
                RuleRound(
                    round=number,
                    leak_at_m=leaks.leak_at_m,
                    m=self.rule.samples,
                    leak=leaks.leak,
                    utility=utility,
                    leaking_samples=leaks.leaking_samples,
                    failed=leaks.failed,
                    pool=len(pool),
                    tokens=leaks.tokens,
                    tolerance=tolerance,
                    stopped=leaks.leak_at_m <= tolerance,
                    model=source_of(stage).identity,
                )
            )
            if leaks.leak_at_m <= tolerance:
                break
            stage = self._unlearn(stage, tuple(pool.values()), number)
            steps, seconds = steps + stage.facts["steps"], seconds + stage.facts["seconds"]
        return RuleRun(stage, rounds, steps, tokens, seconds)

    def control(self, steps: int) -> RuleRun:
        """As many steps of the base method as RULE took, on the forget set alone: what the samples add is the rest."""
        stage = train(self.stages, f"{self.label} base", self.base)
        taken, seconds = stage.facts["steps"], stage.facts["seconds"]
        if steps > taken:
            stage = train(self.stages, f"{self.label} control", self._continued(stage, steps - taken, 1))
            seconds += stage.facts["seconds"]
        return RuleRun(stage, [], steps, 0, seconds)

    def _unlearn(self, stage: FinishedStage, leaked: tuple[Example, ...], number: int) -> FinishedStage:
        """The base objective on the forget set enlarged by what leaked, from where the last round ended."""
        forget, alternate = self.base.forget + leaked, self.base.alternate
        if alternate:
            alternate += tuple(alternate[index] for index in alternates_like(leaked, alternate))
        job = dataclasses.replace(
            self._continued(stage, self.rule.steps or stage.facts["steps"], number),
            forget=forget,
            alternate=alternate,
            forget_reference=self._reference(stage, forget, self.base.forget_reference, number),
            alternate_reference=self._reference(stage, alternate, self.base.alternate_reference, number),
        )
        return train(self.stages, f"{self.label} round {number}", job)

    def _reference(
        self, stage: FinishedStage, examples: tuple[Example, ...], known: tuple[float, ...] | None, number: int
    ) -> tuple[float, ...] | None:
        """Reference log-probabilities of `examples`, of which the first are known under the target model."""
        if known is None:
            return None
        model = self.base.model
        if self.rule.moving_reference:
            model, known = source_of(stage), ()
        wanted = examples[len(known) :]
        settings = self.base.settings
        job = ReferenceJob(
            model,
            wanted,
            self.base.template,
            self.base.system,
            self.base.template_options,
            max_length=settings.max_length,
            gpus=self.experiment.sampling.gpus or 0.0,
            portable=self.base.portable,
        )
        if not wanted:
            return known
        return known + read_reference(
            self.stages.run(f"{self.label} round {number}", reference_stage(job, settings)).path
        )

    def _continued(self, stage: FinishedStage, steps: int, number: int) -> TrainJob:
        """The base method's training going on from `stage`, at a constant learning rate."""
        constant = {"steps": steps, "warmup": 0.0, "decay_from": 1.0, "stop_at_greedy": None, "stop_at_leak": None}
        return dataclasses.replace(
            self.base,
            settings=self.base.settings.model_copy(update=constant),
            continue_from=str(stage.path),
            seed=self.base.seed + ROUND_SEED * number,
        )

    def _find_leaks(self, model: ModelSource, number: int) -> Leaks:
        """m samples of every forget prompt from `model`; each distinct leaking answer as an Example."""
        label = f"{self.label} round {number}" if number else "retain tolerance"
        sampled = self.stages.run(label, self._sample_job(model, number))
        scored = score(self.stages, self.experiment, label, sampled, self.metric)
        scores = group_scores(scored.path)[TRAINING_GROUP].scores
        responses = np.array(read_units(sampled.path, ["response"])["response"].to_pylist(), dtype=object)
        leaking = np.argwhere(scores >= self.rule.threshold)  # a failed metric (NaN) compares as False
        questions = {each.id: each.question for each in self.base.forget}
        found: dict[tuple[str, str], Example] = {}
        for prompt, sample in leaking:
            probe, text = self.probes[prompt], responses[prompt * self.rule.samples + sample]
            name = f"{probe.id}#leak{number}-{sample}"
            found.setdefault((probe.id, text), Example(name, questions[probe.id], text))
        return Leaks(
            leak_at_m=float(np.nanmean(np.nanmax(scores, axis=1))),  # of n = m samples leak@m is the largest
            leak=self._curve(scores),
            failed=int(np.isnan(scores).sum()),
            leaking_samples=len(leaking),
            pool=tuple(found.values()),
            tokens=sampled.facts["tokens"],
            seconds=sampled.facts["seconds"] + scored.facts["seconds"],
        )

    def _curve(self, scores: np.ndarray) -> dict[str, float]:
        """leak@k of a round's samples at the experiment's k, over the prompts without a failed score."""
        whole = scores[~np.isnan(scores).any(axis=1)]
        ks = [k for k in self.experiment.leak.k or () if k <= self.rule.samples]
        if not len(whole) or not ks:
            return {}
        return {str(k): float(value) for k, value in zip(ks, leak_at_k(whole, ks), strict=True)}

    def _utility(self, model: ModelSource, number: int) -> float:
        """Mean core metric of greedy answers to the utility probes."""
        protocol, label = self.benchmark.protocol, f"{self.label} round {number} utility"
        probes = self.benchmark.group(protocol.utility_group)
        sampled = self.stages.run(
            label, job_for(self.experiment, model, probes, Decoding(temperature=0.0), 1, self.experiment.seed)
        )
        scored = score(self.stages, self.experiment, label, sampled, protocol.core_metric)
        return float(np.nanmean(group_scores(scored.path)[protocol.utility_group].scores))

    def _enlarged(
        self, pool: dict[tuple[str, str], Example], found: tuple[Example, ...]
    ) -> dict[tuple[str, str], Example]:
        """All leaks so far or this round's alone, each text once a question, the newest kept where capped."""
        enlarged = dict(pool) if self.rule.pool == "all" else {}
        for each in found:
            enlarged.setdefault((each.question, each.answer), each)
        if self.rule.pool_cap is not None:
            enlarged = dict(list(enlarged.items())[-self.rule.pool_cap :])
        return enlarged

    def _tolerance(self) -> float:
        if self.rule.tolerance is not None:
            return float(self.rule.tolerance)
        return self._find_leaks(self.retain, 0).leak_at_m if self.retain is not None else 0.0

    def _sample_job(self, model: ModelSource, number: int) -> SampleJob:
        headline = self.experiment.headline_decoding or Decoding()
        seed = self.experiment.seed + ROUND_SEED * (number + 1)
        return job_for(self.experiment, model, self.probes, headline, self.rule.samples, seed)

    def _with_facts(self) -> list[tuple[Example, str | None]]:
        """Forget examples with their facts, where the benchmark's probes know them."""
        facts = {(probe.prompt, probe.reference): probe.fact for probe in self.benchmark.probes}
        unique = dict.fromkeys(self.base.forget)  # sampled alternates pair one example several times
        return [(each, facts.get((each.question, each.answer))) for each in unique]
