"""Sampling and scoring one model as an experiment asks: n samples a prompt at every decoding, or rounds of them.

A model and what evaluates it come in, its Samplings come out, finished stages all. With `sampling.adaptive` the samples
of a decoding are raised until leak@k is known well enough. Knows nothing of what is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.base import Benchmark, Decoding
from engine.config.experiment import Experiment
from engine.evaluation.benchmark_metrics import greedy_metrics
from engine.evaluation.jobs import endpoint_job, round_seed, sample_job, score
from engine.leak.variance import sampling_half_width
from engine.models.source import ModelSource
from engine.stages.base import Stages
from engine.stages.sample import sample_grid
from engine.stages.sample_endpoint import Endpoint
from engine.stages.score import GroupScores, group_scores
from engine.store.store import FinishedStage

GREEDY = Decoding(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is evaluated, called `label`, and by what."""

    stages: Stages
    experiment: Experiment
    benchmark: Benchmark
    model: ModelSource
    label: str


@dataclasses.dataclass(frozen=True)
class Round:
    """Samples of every prompt that were drawn together, and their scores by metric."""

    generations: FinishedStage
    scores: dict[str, FinishedStage]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """All samples at one decoding: one round, or several whose samples add up."""

    decoding: Decoding
    rounds: tuple[Round, ...]

    @property
    def greedy(self) -> bool:
        return self.decoding.temperature == 0

    @property
    def tokens(self) -> int:
        return sum(each.generations.facts["tokens"] for each in self.rounds)

    @property
    def seconds(self) -> float:
        """Of work over all workers, the scoring included."""
        stages = [stage for each in self.rounds for stage in (each.generations, *each.scores.values())]
        return float(sum(stage.facts["seconds"] for stage in stages))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.rounds[0].scores)

    def scores(self, metric: str) -> dict[str, GroupScores]:
        """By group of probes, the scores of all samples."""
        first, *more = [group_scores(each.scores[metric].path) for each in self.rounds]
        return {
            group: GroupScores(own.prompt_ids, np.concatenate([own.scores, *(each[group].scores for each in more)], 1))
            for group, own in first.items()
        }


def sample_model(subject: Subject) -> list[Sampling]:
    """Every decoding of the experiment with its samples and scores, the greedy one always and last."""
    decodings = {each.name: each for each in subject.experiment.sampling.decoding or ()}
    sampled = [decoding for decoding in decodings.values() if decoding.temperature > 0]
    rounds = draw(subject, sampled, 1)
    samplings = [_to_the_width(subject, decoding, first) for decoding, first in zip(sampled, rounds, strict=True)]
    (greedy,) = draw(subject, [GREEDY], 1)
    return [*samplings, Sampling(GREEDY, (_scored(subject, GREEDY, greedy),))]


def draw(subject: Subject, decodings: Sequence[Decoding], number: int, n: int | None = None) -> list[FinishedStage]:
    """The generations of one round at each decoding; a model at hand is loaded, and reads the prompts, once for all.

    number: of the round, from 1; n: samples of each prompt, where not as many as the experiment begins with.
    """
    experiment, benchmark, model = subject.experiment, subject.benchmark, subject.model
    label = f"{subject.label} {', '.join(decoding.name for decoding in decodings)}"
    label += f" round {number}" if number > 1 else ""
    experiment = experiment.model_copy(update={"seed": round_seed(experiment.seed, number)})
    if isinstance(model, Endpoint):
        requests = [endpoint_job(experiment, benchmark, model, decoding, n) for decoding in decodings]
        return [subject.stages.run(f"{subject.label} {job.decoding.name}", job) for job in requests]
    jobs = [sample_job(experiment, benchmark, model, decoding, n) for decoding in decodings]
    return sample_grid(subject.stages, label, jobs) if jobs else []


def _scored(subject: Subject, decoding: Decoding, generations: FinishedStage) -> Round:
    """A round with its scores by every metric, of greedy answers by those of the benchmark's own metrics too."""
    beside = greedy_metrics(subject.benchmark) if decoding.temperature == 0 else ()
    metrics = dict.fromkeys((*(subject.experiment.metrics or ()), *beside))
    label = f"{subject.label} {decoding.name}"
    scores = {metric: score(subject.stages, subject.experiment, label, generations, metric) for metric in metrics}
    return Round(generations, scores)


def _to_the_width(subject: Subject, decoding: Decoding, first: FinishedStage) -> Sampling:
    """The samples at one decoding; with sampling.adaptive more of them, round by round, until the sampling error of
    leak@k is as small as wanted in every leak group, or no more may be drawn."""
    sampling = Sampling(decoding, (_scored(subject, decoding, first),))
    adaptive, metric = subject.experiment.sampling.adaptive, subject.benchmark.protocol.core_metric
    while adaptive is not None:
        groups = sampling.scores(metric).values()
        n = min(group.scores.shape[1] for group in groups)
        k, confidence = max(subject.experiment.leak.k or (1,)), subject.experiment.leak.confidence
        width = float(np.max([sampling_half_width(group.scores, k, confidence) for group in groups]))
        if width <= adaptive.half_width or n >= adaptive.max_samples:
            break
        number, wanted = len(sampling.rounds) + 1, further_samples(n, width, adaptive.half_width)
        (more,) = draw(subject, [decoding], number, min(wanted, adaptive.max_samples - n))
        sampling = Sampling(decoding, (*sampling.rounds, _scored(subject, decoding, more)))
    return sampling


def further_samples(n: int, width: float, wanted: float) -> int:
    """Samples of each prompt to draw after n that gave half-width `width`, NaN = not known: n times the variance never
    grows with n (Hoeffding 1948), so these are enough as far as the width is right; between an eighth of n and n."""
    enough = n * ((width / wanted) ** 2 - 1)
    return n if np.isnan(enough) else int(np.clip(np.ceil(enough), -(-n // 8), n))
