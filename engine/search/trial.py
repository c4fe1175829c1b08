"""One trial of a search: unlearn at one point of the space, and look at the model, cheaply first.

A point and the search's Setting come in; reports of what was seen come out, look by look, each with an interval. Runs
in a process of its own on the cluster and calls the same stages as everything else: a trial that was cut off finds what
it had finished. Knows nothing of other trials.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.errors import DivergedError, UserError
from engine.models.source import ModelSource
from engine.pipeline.model_builder import Made, Maker
from engine.search.space import Rung
from engine.search.trial_evaluation import WORST, Look, Setting, floor, greedy_score, kept, look, surely_too_low
from engine.stages.base import Stages, source_of
from engine.store.store import Store
from engine.train.launch import train


def trial(config: dict[str, Any], setting: Setting) -> None:
    """Ray Tune's trainable: one report a look."""
    from ray import tune

    for report in looks(config, setting):
        tune.report(report)


def looks(values: dict[str, Any], setting: Setting) -> Iterator[dict[str, Any]]:
    """Train and look: a report for each look. A failure is a report with its cause."""
    ray_cluster.data_context()
    with Progress(quiet=True) as progress:
        try:
            yield from _at(values, setting, progress).reports()
        except Exception as error:  # one trial's failure must not end the search
            yield failure(_cause(error))


def look_again(values: dict[str, Any], setting: Setting, rung: Rung) -> dict[str, Any]:
    """The report of a further look at a trial that `looks` has reported."""
    with Progress(quiet=True) as progress:
        try:
            return _at(values, setting, progress).final(rung)
        except Exception as error:
            return failure(_cause(error))


def _at(values: dict[str, Any], setting: Setting, progress: Progress) -> _Trial:
    stages = Stages(_store(setting.store), progress, lambda: None)
    benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
    return _Trial(values, setting, stages, benchmark)


@functools.cache
def _store(root: str) -> Store:
    """One for the process: what it has verified once it need not read again."""
    return Store(root)


def _cause(error: Exception) -> str:
    known = isinstance(error, DivergedError | UserError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def failure(cause: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    nothing = Look(0, 0, math.nan, 0.0, 1.0, 0.0, WORST)
    return _report(nothing, value=WORST, feasible=False, failed=" ".join(cause.split())[:300])


def reported(result: dict[str, Any]) -> dict[str, Any]:
    """A trial's own report, without what Ray Tune adds to it."""
    return {name: result[name] for name in failure("") if name in result}


def _report(seen: Look, **more: Any) -> dict[str, Any]:
    """What a look says. n, k, leak, low, high, bound, predicted, excess: see Look; epoch: of a look while training, 0
    after it; greedy: on the prompts that decide; utility, kept: NaN and empty until measured; value: what the search
    makes small; full: sampled as every finalist is; tokens: sampled so far for this trial; failed: why it came to
    nothing."""
    known = {"epoch": 0.0, "greedy": math.nan, "utility": math.nan, "kept": {}, "value": seen.predicted}
    rest = {"feasible": True, "full": False, "tokens": 0, "failed": ""}
    return dataclasses.asdict(seen) | known | rest | more


class _Trial:
    """The models of one point, one for each of the space's seeds, and what has been seen of them so far."""

    def __init__(self, values: dict[str, Any], setting: Setting, stages: Stages, benchmark: Benchmark) -> None:
        self.setting, self.stages, self.benchmark = setting, stages, benchmark
        self.section = setting.space.section(values)
        experiment = setting.experiment
        seeds = [experiment.seed + each for each in range(setting.space.seeds)]
        self.makers = [Maker(experiment.model_copy(update={"seed": seed}), benchmark, stages) for seed in seeds]
        self.target: Made = Maker(experiment, benchmark, stages).target()
        self.jobs = [
            maker.unlearning(self.section.name, self.section, tuple(benchmark.forget), self.target)
            for maker in self.makers
        ]
        self.known: dict[str, Any] = {"tokens": 0}
        self.floor: Look | None = None

    def reports(self) -> Iterator[dict[str, Any]]:
        """A report for each look: enough to tell finalists; in full without rungs, or for the whole front."""
        pareto = self.setting.space.search == "pareto"
        models = yield from self._trained()
        answers = [greedy_score(self.setting, self.stages, self.benchmark, model) for model in models]
        self.known["greedy"] = float(np.mean([each.leak for each in answers]))
        self.known["tokens"] += sum(each.tokens for each in answers)
        self.floor = self._mean([floor(self.setting, self.stages, self.benchmark, model) for model in models])
        whole = pareto or not self.setting.space.rungs
        if whole or not self._few_say(models):
            self._keep(models)
        if not self.known.get("feasible", True) and not pareto:
            yield self._told(self.floor)
        elif whole:
            yield self._told(self._look(models, self.setting.whole), full=True)
        else:
            yield self._told(self._look(models, self.setting.space.rungs[0]))

    def final(self, rung: Rung) -> dict[str, Any]:
        """The report of a further look at a trial that was looked at before; in full only where it keeps enough."""
        *_, before = self.reports()  # from the store
        models = [source_of(train(self.stages, "trial", job)) for job in self.jobs]
        for each in self.setting.space.rungs[1:]:
            if each.n < rung.n:
                self._look(models, each)
        if rung != self.setting.whole:
            return self._told(self._look(models, rung))
        self._keep(models)
        if not self.known["feasible"]:
            return before | self.known | {"value": 1.0 + self.lack}
        return self._told(self._look(models, rung), full=True)

    def _trained(self) -> Any:
        """The trained models; with ASHA, looked at on the way."""
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
            seen = self._look(models, Rung(n=asha.n, prompts=asha.prompts))
            if not self._few_say(models):
                self._keep(models)
            yield self._told(seen, epoch=epoch)
            self.known = {"tokens": self.known["tokens"]}  # what was kept so far says little of the end
            jobs = [dataclasses.replace(job, resume=str(part.path)) for job, part in zip(jobs, parts, strict=True)]
            epoch *= asha.reduction
        return [source_of(train(self.stages, "trial", job)) for job in jobs]

    def _look(self, models: list[ModelSource], rung: Rung) -> Look:
        seen = [look(self.setting, self.stages, self.benchmark, model, rung) for model in models]
        self.known["tokens"] += sum(each.tokens for each in seen)
        return self._mean(seen)

    def _few_say(self, models: list[ModelSource]) -> bool:
        """Whether a few prompts are enough to judge, for now, what the models keep."""
        found = [surely_too_low(self.setting, self.stages, self.benchmark, model) for model in models]
        looked = [each for each in found if each is not None]
        self.known["tokens"] += sum(each.tokens for each in looked)
        low = [each.values["utility"] for each in looked if each.values]
        if looked and len(low) == len(models):
            self.known |= {"utility": float(np.mean(low)), "feasible": False}
            self.lack = self.setting.least["utility"] - self.known["utility"]
        return bool(looked)

    def _keep(self, models: list[ModelSource]) -> None:
        """Measure what the models keep, and whether it is enough."""
        found = [kept(self.setting, self.stages, self.benchmark, model, "trial") for model in models]
        self.known["tokens"] += sum(each.tokens for each in found)
        values = {name: float(np.mean([each.values[name] for each in found])) for name in found[0].values}
        self.known["utility"] = values["utility"]
        self.known["kept"] = {name: values[name] for name in self.setting.least}
        self.lack = sum(max(0.0, least - values[name]) for name, least in self.setting.least.items())
        self.known["feasible"] = self.lack == 0

    def _told(self, seen: Look, **more: Any) -> dict[str, Any]:
        # A trial that keeps too little is worse than any other, the more so the less it keeps. Before the full look the
        # floor tells apart what few samples cannot.
        predicted = max(seen.predicted, self.floor.leak) if not more.get("full") and self.floor else seen.predicted
        value = predicted if self.known.get("feasible", True) else 1.0 + self.lack
        return _report(seen, **(self.known | {"value": value} | more))

    @staticmethod
    def _mean(seen: list[Look]) -> Look:
        """The mean over seeds, and the tokens of all of them."""
        names = ("leak", "low", "high", "bound", "predicted", "excess", "excess_low", "excess_high")
        means: dict[str, Any] = {name: float(np.mean([getattr(each, name) for each in seen])) for name in names}
        return dataclasses.replace(seen[0], tokens=sum(each.tokens for each in seen), **means)
