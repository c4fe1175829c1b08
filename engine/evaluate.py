"""Evaluating one model: sample every group of probes, score by every metric, estimate leak@k and utility.

A model source and a benchmark come in, a ModelResult comes out. Knows nothing of how the model was made.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.base import Benchmark, Decoding, Probe
from engine.experiment import Experiment
from engine.leak import leak_curve
from engine.models import ModelSource
from engine.results import Curve
from engine.sample import SampleJob
from engine.scoring import GroupScores, group_scores
from engine.stages import Stages
from engine.store import Stage

Scores = dict[tuple[str, str, str], GroupScores]  # (group, metric, decoding) -> scores


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's scores: n samples a prompt by (group, metric, decoding), and greedy answers by (group, metric)."""

    scores: Scores
    greedy: dict[tuple[str, str], GroupScores]
    tokens: int
    seconds: float
    stages: dict[str, str]

    def greedy_means(self, metric: str) -> dict[str, float]:
        """Mean greedy score of each group of probes; samples that the metric failed on are left out."""
        return {group: float(np.nanmean(each.scores)) for (group, name), each in self.greedy.items() if name == metric}


def decoding_name(decoding: Decoding) -> str:
    """Short name of a decoding: T1-p1, T0.8-p0.2-k50, greedy."""
    if decoding.temperature == 0:
        return "greedy"
    top_k = f"-k{decoding.top_k}" if decoding.top_k else ""
    return f"T{decoding.temperature:g}-p{decoding.top_p:g}{top_k}"


def evaluate(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
) -> Evaluation:
    """Sample and score one model: the leak groups at every decoding with n samples, all groups greedily."""
    scores: Scores = {}
    greedy: dict[tuple[str, str], GroupScores] = {}
    tokens, seconds, folders = 0, 0.0, {}
    decodings = {decoding_name(each): each for each in experiment.sampling.decoding or ()}
    decodings.setdefault("greedy", Decoding(temperature=0.0))
    for name, decoding in decodings.items():
        sampled = stages.sample(f"{label} {name}", sample_job(experiment, benchmark, model, decoding))
        tokens += sampled.facts["tokens"]
        seconds += sampled.facts["seconds"]
        folders[f"generations {name}"] = _below(stages, sampled)
        for metric in experiment.metrics or ():
            scored = stages.score(f"{label} {name}", sampled, metric)
            seconds += scored.facts["seconds"]
            folders[f"scores {name} {metric}"] = _below(stages, scored)
            for group, values in group_scores(scored.path).items():
                if name == "greedy":
                    greedy[group, metric] = values
                else:
                    scores[group, metric, name] = values
    return Evaluation(scores, greedy, tokens, seconds, folders)


def sample_job(experiment: Experiment, benchmark: Benchmark, model: ModelSource, decoding: Decoding) -> SampleJob:
    """What `evaluate` samples at one decoding: leak groups n times, or every group once where it is greedy."""
    greedy = decoding.temperature == 0
    probes = [probe for probe in benchmark.probes if greedy or is_leak_group(probe.group)]
    return job_for(experiment, model, probes, decoding, 1 if greedy else experiment.sampling.n or 1, experiment.seed)


def job_for(
    experiment: Experiment, model: ModelSource, probes: list[Probe], decoding: Decoding, n: int, seed: int
) -> SampleJob:
    """A SampleJob with the experiment's template, length and devices."""
    sampling = experiment.sampling
    return SampleJob(
        model=model,
        probes=tuple(probes),
        decoding=decoding,
        n=n,
        max_new_tokens=sampling.max_new_tokens or 1,
        seed=seed,
        template=experiment.model.template,
        system=experiment.model.system,
        max_rows=sampling.max_rows,
        gpus=sampling.gpus or 0.0,
    )


def is_leak_group(group: str) -> bool:
    """Groups of prompts about the forget set are named forget, forget_paraphrase, ..."""
    return group.startswith("forget")


def curves(experiment: Experiment, evaluation: Evaluation, retain: Evaluation | None) -> list[Curve]:
    """leak@k of every group, metric and decoding, with the excess over the retain model where there is one."""
    made = []
    for (group, metric, decoding), values in evaluation.scores.items():
        yardstick = retain.scores.get((group, metric, decoding)) if retain is not None else None
        curve = leak_curve(
            values.scores,
            list(experiment.leak.k or ()),
            experiment.leak.confidence,
            yardstick.scores if yardstick is not None else None,
            experiment.seed,
        )
        made.append(
            Curve(
                group=group,
                metric=metric,
                decoding=decoding,
                **{
                    key: value
                    for key, value in curve.as_dict().items()
                    if key in {field.name for field in dataclasses.fields(Curve)}
                },
            )
        )
    return made


def _below(stages: Stages, stage: Stage) -> str:
    return stage.path.relative_to(stages.store.root).as_posix()
