"""One trial of a search: unlearn at one point of the space and estimate how the model leaks, cheaply first.

A point and the search's Setting come in; reports come out, one for each estimate. Runs in a process of its own on the
cluster and calls the same stages as everything else: a trial that was cut off finds what it had finished. Knows nothing
of other trials.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.errors import DivergedError, InterruptedTrainingError, UserError
from engine.models.source import ModelSource
from engine.pipeline.model_builder import ModelBuilder
from engine.search.space import Rung
from engine.search.trial_evaluation import Setting, estimate_leak, exact_floor, greedy_score, kept, surely_too_low
from engine.search.trial_report import LeakEstimate, TrialReport
from engine.stages.base import Stages, source_of
from engine.store.store import Store
from engine.train.launch import train

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from engine.cluster.reporter import Board

ENDING_SECONDS = 300.0  # more than a search takes to end once it was asked to


def trainable(config: Mapping[str, object], setting: Setting, board: ActorHandle[Board]) -> None:
    """What Ray Tune runs for each trial. board: the search's, by which it tells trainings to save and stop."""
    from ray import tune

    for report in run_trial(config, setting, board):
        tune.report(report.as_dict())


def run_trial(
    values: Mapping[str, object], setting: Setting, board: ActorHandle[Board] | None = None
) -> Iterator[TrialReport]:
    """Train and estimate: a report for each estimate. What is wrong with the point is a report with its cause; what
    is wrong with the cluster is raised, so that the trial runs again when the search goes on."""
    ray_cluster.data_context()
    with Progress(quiet=True, board=board) as progress:
        try:
            yield from _trial(values, setting, progress).reports()
        except (DivergedError, UserError) as error:
            yield TrialReport.of_failure(str(error))
        except InterruptedTrainingError:
            time.sleep(ENDING_SECONDS)  # the search is asked to end, and this process with it
            raise


def sample_further(
    values: Mapping[str, object], setting: Setting, rung: Rung, board: ActorHandle[Board] | None = None
) -> TrialReport:
    """The report at a further rung of a trial that `run_trial` has run."""
    with Progress(quiet=True, board=board) as progress:
        try:
            return _trial(values, setting, progress).at(rung)
        except (DivergedError, UserError) as error:
            return TrialReport.of_failure(str(error))


def _trial(values: Mapping[str, object], setting: Setting, progress: Progress) -> _Trial:
    stages = Stages(_store(setting.store), progress, lambda: None)
    benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
    return _Trial(values, setting, stages, benchmark)


@functools.cache
def _store(root: str) -> Store:
    """One for the process: what it has verified once it need not read again."""
    return Store(root)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What is known of a trial beside its leakage. lack: by how much it misses what must be kept, summed over it."""

    tokens: int = 0
    greedy: float = math.nan
    utility: float = math.nan
    kept: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lack: float = 0.0

    @property
    def feasible(self) -> bool:
        return self.lack == 0


class _Trial:
    """The models of one point, one for each of the space's seeds, and what is known of them so far."""

    def __init__(self, values: Mapping[str, object], setting: Setting, stages: Stages, benchmark: Benchmark) -> None:
        self.setting, self.stages, self.benchmark = setting, stages, benchmark
        experiment, section = setting.experiment, setting.space.section(values)
        target = ModelBuilder(experiment, benchmark, stages).target()
        seeds = [experiment.seed + number for number in range(setting.space.seeds)]
        builders = [ModelBuilder(experiment.model_copy(update={"seed": seed}), benchmark, stages) for seed in seeds]
        self.jobs = [builder.unlearning(section.name, section, tuple(benchmark.forget), target) for builder in builders]
        self.measured = _Measured()
        self.floor: LeakEstimate | None = None

    def reports(self) -> Iterator[TrialReport]:
        """A report for each estimate: at the first rung after training; in full without rungs, or for a whole front."""
        space = self.setting.space
        pareto = space.search == "pareto"
        models = yield from self._trained()
        answers = [greedy_score(self.setting, self.stages, self.benchmark, model) for model in models]
        self._add_tokens(sum(tokens for _, tokens in answers))
        self.measured = dataclasses.replace(self.measured, greedy=float(np.mean([score for score, _ in answers])))
        self.floor = _mean([exact_floor(self.setting, self.stages, self.benchmark, model) for model in models])
        in_full = pareto or not space.rungs
        if in_full or not self._few_prompts_tell(models):
            self._measure_kept(models)
        if not self.measured.feasible and not pareto:
            yield self._report(self.floor)
        elif in_full:
            yield self._report(self._estimate(models, self.setting.full), full=True)
        else:
            yield self._report(self._estimate(models, space.rungs[0]))

    def at(self, rung: Rung) -> TrialReport:
        """The report at a further rung of a trial that ran before; in full only where it keeps enough."""
        *_, before = self.reports()  # from the store
        models = [source_of(train(self.stages, "trial", job)) for job in self.jobs]
        for earlier in self.setting.space.rungs[1:]:
            if earlier.n < rung.n:
                self._estimate(models, earlier)
        if rung != self.setting.full:
            return self._report(self._estimate(models, rung))
        self._measure_kept(models)
        if not self.measured.feasible:
            return self._report(before)
        return self._report(self._estimate(models, rung), full=True)

    def _trained(self) -> Generator[TrialReport, None, list[ModelSource]]:
        """The trained models; with ASHA, a report after each part of the training."""
        jobs = self.jobs
        asha = self.setting.space.asha
        epoch = asha.first if asha is not None else math.inf
        while asha is not None and jobs[0].steps_in(epoch) < jobs[0].steps:
            steps = jobs[0].steps_in(epoch)
            parts = [
                train(self.stages, "trial", dataclasses.replace(job, until=max(1, steps), keep_state=False))
                for job in jobs
            ]
            models = [source_of(part) for part in parts]
            estimate = self._estimate(models, Rung(n=asha.n, prompts=asha.prompts))
            if not self._few_prompts_tell(models):
                self._measure_kept(models)
            yield self._report(estimate, epoch=epoch)
            self.measured = _Measured(self.measured.tokens)  # what is kept so far says little of the end
            jobs = [dataclasses.replace(job, resume=str(part.path)) for job, part in zip(jobs, parts, strict=True)]
            epoch *= asha.reduction
        return [source_of(train(self.stages, "trial", job)) for job in jobs]

    def _estimate(self, models: list[ModelSource], rung: Rung) -> LeakEstimate:
        estimates = [estimate_leak(self.setting, self.stages, self.benchmark, model, rung) for model in models]
        self._add_tokens(sum(estimate.tokens for estimate in estimates))
        return _mean(estimates)

    def _few_prompts_tell(self, models: list[ModelSource]) -> bool:
        """Whether a few prompts are enough to judge, for now, what the models keep."""
        tried = [surely_too_low(self.setting, self.stages, self.benchmark, model) for model in models]
        measured = [kept for kept in tried if kept is not None]
        self._add_tokens(sum(kept.tokens for kept in measured))
        low = [kept.values["utility"] for kept in measured if kept.values]
        if measured and len(low) == len(models):
            utility = float(np.mean(low))
            lack = self.setting.least["utility"] - utility
            self.measured = dataclasses.replace(self.measured, utility=utility, lack=lack)
        return bool(measured)

    def _measure_kept(self, models: list[ModelSource]) -> None:
        """Measure what the models keep, and whether it is enough."""
        measured = [kept(self.setting, self.stages, self.benchmark, model, "trial") for model in models]
        self._add_tokens(sum(part.tokens for part in measured))
        values = {name: float(np.mean([part.values[name] for part in measured])) for name in measured[0].values}
        self.measured = dataclasses.replace(
            self.measured,
            utility=values["utility"],
            kept={name: values[name] for name in self.setting.least},
            lack=sum(max(0.0, least - values[name]) for name, least in self.setting.least.items()),
        )

    def _add_tokens(self, tokens: int) -> None:
        self.measured = dataclasses.replace(self.measured, tokens=self.measured.tokens + tokens)

    def _report(self, estimate: LeakEstimate, epoch: float = 0.0, full: bool = False) -> TrialReport:
        # A trial that keeps too little is worse than any other, the more so the less it keeps. Before it is sampled in
        # full the floor tells apart what few samples cannot.
        known, predicted = self.measured, estimate.predicted
        if self.floor is not None and not full:
            predicted = max(predicted, self.floor.leak)
        return dataclasses.replace(
            TrialReport.of(estimate),
            epoch=epoch,
            greedy=known.greedy,
            utility=known.utility,
            kept=known.kept,
            value=predicted if known.feasible else 1.0 + known.lack,
            feasible=known.feasible,
            full=full,
            tokens=known.tokens,
        )


def _mean(estimates: list[LeakEstimate]) -> LeakEstimate:
    """The mean over seeds, and the tokens of all of them."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(estimate, name) for estimate in estimates]))

    return dataclasses.replace(
        estimates[0],
        leak=mean("leak"),
        low=mean("low"),
        high=mean("high"),
        bound=mean("bound"),
        predicted=mean("predicted"),
        excess=mean("excess"),
        excess_low=mean("excess_low"),
        excess_high=mean("excess_high"),
        tokens=sum(estimate.tokens for estimate in estimates),
    )
