"""One trial of a search: unlearn at one point of the space, and look at the model, cheaply first.

A point and the search's Setting come in; reports of what was seen come out, look by look, each with an interval. Runs
in a process of its own on the cluster and calls the same stages as everything else: a trial that was cut off finds what
it had finished. Knows nothing of other trials.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark
from engine import cluster
from engine.looks import WORST, Look, Setting, floor, greedy_score, kept, look
from engine.maker import Made, Maker
from engine.models import ModelSource
from engine.progress import Progress
from engine.spaces import Rung
from engine.stages import Stages, source_of
from engine.store import Store


def trial(config: dict[str, Any], setting: Setting) -> None:
    """Ray Tune's trainable: one report a look."""
    from ray import tune

    for report in looks(config, setting):
        tune.report(report)


def looks(values: dict[str, Any], setting: Setting) -> Iterator[dict[str, Any]]:
    """Train and look: a report for each look, the last one in full. A failure is a report with its cause."""
    cluster.data_context()
    with Progress(quiet=True) as progress:
        stages = Stages(Store(Path(setting.store)), progress, setting.experiment.sampling.workers, lambda: None)
        try:
            benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
            yield from _Trial(values, setting, stages, benchmark).reports()
        except Exception as error:  # one trial's failure must not end the search
            known = type(error).__name__ in ("DivergedError", "UserError")
            yield failure(str(error) if known else f"{type(error).__name__}: {error}")


def failure(cause: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    return _report(Look(0, 0, math.nan, 0.0, 1.0), value=WORST, feasible=False, failed=" ".join(cause.split())[:300])


def reported(result: dict[str, Any]) -> dict[str, Any]:
    """A trial's own report, without what Ray Tune adds to it."""
    return {name: result[name] for name in failure("") if name in result}


def _report(seen: Look, **more: Any) -> dict[str, Any]:
    """What a look says. epoch: of a look while training, 0 after it; n, k, leak, low, high: see Look; greedy: on the
    prompts that decide; utility, kept: NaN and empty until measured; value: what the search makes small; full: sampled
    as every finalist is; tokens: sampled so far for this trial; failed: why it came to nothing."""
    known = {"epoch": 0.0, "greedy": math.nan, "utility": math.nan, "kept": {}, "value": seen.leak, "feasible": True}
    return dataclasses.asdict(seen) | known | {"full": False, "tokens": 0, "failed": ""} | more


class _Trial:
    """The models of one point, one for each of the space's seeds, and what has been seen of them so far."""

    def __init__(self, values: dict[str, Any], setting: Setting, stages: Stages, benchmark: Benchmark) -> None:
        self.setting, self.stages, self.benchmark = setting, stages, benchmark
        self.section = setting.space.section(values)
        experiment = setting.experiment
        seeds = [experiment.seed + each for each in range(setting.space.seeds)]
        self.makers = [Maker(experiment.model_copy(update={"seed": seed}), benchmark, stages) for seed in seeds]
        self.target: Made = Maker(experiment, benchmark, stages).target()
        self.known: dict[str, Any] = {"tokens": 0}

    def reports(self) -> Iterator[dict[str, Any]]:
        """A report for each look, in the order of their cost."""
        pareto = self.setting.space.search == "pareto"
        models = yield from self._trained()
        answers = [greedy_score(self.setting, self.stages, self.benchmark, model) for model in models]
        self.known["greedy"] = float(np.mean([each.leak for each in answers]))
        self.known["tokens"] += sum(each.tokens for each in answers)
        least = self._mean([floor(self.setting, self.stages, self.benchmark, model) for model in models])
        if not pareto:
            yield self._told(least)
        self._keep(models)
        if not self.known["feasible"] and not pareto:
            yield self._told(least)
            return
        for rung in () if pareto else self.setting.space.rungs:
            yield self._told(self._look(models, rung))
        yield self._told(self._look(models, self.setting.whole), full=True)

    def _trained(self) -> Any:
        """The trained models; with ASHA, looked at on the way."""
        jobs = [
            maker.unlearning(self.section.name, self.section, tuple(self.benchmark.forget), self.target)
            for maker in self.makers
        ]
        asha = self.setting.space.asha
        epoch = asha.first if asha is not None else math.inf
        while asha is not None and jobs[0].steps_in(epoch) < jobs[0].steps:
            steps = jobs[0].steps_in(epoch)
            parts = [
                self.stages.train("trial", dataclasses.replace(job, until=max(1, steps), keep_state=False))
                for job in jobs
            ]
            seen = self._look([source_of(part) for part in parts], Rung(n=asha.n, prompts=asha.prompts))
            yield self._told(seen, epoch=epoch)
            jobs = [dataclasses.replace(job, resume=str(part.path)) for job, part in zip(jobs, parts, strict=True)]
            epoch *= asha.reduction
        return [source_of(self.stages.train("trial", job)) for job in jobs]

    def _look(self, models: list[ModelSource], rung: Rung) -> Look:
        seen = [look(self.setting, self.stages, self.benchmark, model, rung) for model in models]
        self.known["tokens"] += sum(each.tokens for each in seen)
        return self._mean(seen)

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
        known = {key: value for key, value in self.known.items() if value is not None}
        # A trial that keeps too little is worse than any other, the more so the less it keeps.
        value = seen.leak if known.get("feasible", True) else 1.0 + self.lack
        return _report(seen, **(known | {"value": value} | more))

    @staticmethod
    def _mean(seen: list[Look]) -> Look:
        """The mean over seeds, and the tokens of all of them."""
        names = ("leak", "low", "high", "excess", "excess_low", "excess_high")
        means: dict[str, Any] = {name: float(np.mean([getattr(each, name) for each in seen])) for name in names}
        return dataclasses.replace(seen[0], tokens=sum(each.tokens for each in seen), **means)
