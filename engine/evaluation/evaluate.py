"""Evaluating one model: leak@k of each prompt, greedy answers, and what its own metrics read.

A model source, a benchmark and an experiment come in, an Evaluation comes out. Knows nothing of how the model was made.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.base import Benchmark, Example, is_leak_group, probe_clusters
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import wants_likelihoods
from engine.evaluation.jobs import MAX_LENGTH, likelihood_job, on_exact_path, sample_job
from engine.evaluation.multiple_choice import accuracy
from engine.evaluation.sampling import Sampling, Subject, sample_model
from engine.leak.clusters import Clusters, clusters_of
from engine.leak.estimator import Floats
from engine.leak.per_prompt import PromptLeaks, leaks_of_scores
from engine.leak.variance import sampling_half_width
from engine.models.size import parameters_of
from engine.models.source import ModelSource
from engine.reporting.results import answers_stage, generations_stage, scores_stage, tally
from engine.stages.base import Stages
from engine.stages.known_answers import AnswersJob, Known, known_answers
from engine.stages.likelihood import Likelihoods, read_likelihoods
from engine.stages.reference import ReferenceJob, read_reference
from engine.stages.sample import unit_prompts
from engine.stages.sample_endpoint import NO_LIKELIHOOD, Endpoint
from engine.stages.score import GroupScores
from engine.store.store import FinishedStage

SHARED_MODEL = (
    "a model that GPUs share (sampling.tensor_parallel) is sampled alone: likelihoods and the lower bound (floor) need "
    "it on one"
)
SURE_METRICS = ("exact_fact", "rouge_l_recall", "rouge_l_f1")  # a reference that they see scores 1 by these itself
Key = tuple[str, str, str]  # group, metric, decoding
Leaks = dict[Key, PromptLeaks]
Scored = dict[str, dict[str, GroupScores]]  # all scores at one decoding, by metric and group


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's leak@k of each prompt by (group, metric, decoding), and greedy answers by (group, metric).

    samplings: where the samples stand, with their scores. prompt_ids: of each leak group, in the order of all that is
    by prompt. known: by (group, metric, decoding) the known answers to each prompt, None where there are none; empty
    where the model gives no probabilities. stages: folders below the store, as results.json names them.
    failures: samples without a score by the core metric, by reason. notes: for the reader. likelihoods: what the
    benchmark's own metrics read, None where it declares none or the model gives none. accuracy: by group of
    multiple-choice questions. clusters: what a probe shares with others, by its id, where the benchmark knows it.
    """

    samplings: list[Sampling]
    leaks: Leaks
    greedy: dict[tuple[str, str], GroupScores]
    prompt_ids: dict[str, list[str]]
    known: dict[Key, list[Known | None]]
    tokens: int
    seconds: float
    stages: dict[str, str]
    failures: dict[str, int]
    notes: list[str]
    likelihoods: Likelihoods | None = None
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    clusters: dict[str, str] = dataclasses.field(default_factory=dict)

    def clusters_of(self, group: str) -> Clusters:
        """Which prompts of a leak group belong together."""
        ids = self.prompt_ids[group]
        return clusters_of([self.clusters.get(prompt_id) for prompt_id in ids], len(ids))

    def greedy_means(self, metric: str) -> dict[str, float]:
        """Mean greedy score of each group of probes; samples that the metric failed on are left out."""
        means = {}
        for (group, name), answers in self.greedy.items():
            if name == metric:
                if np.isnan(answers.scores).all():
                    raise UserError(f"{group}: every greedy answer lacks a score by {metric} ({tally(self.failures)})")
                means[group] = float(np.nanmean(answers.scores))
        return means

    def utility(self, benchmark: Benchmark, metrics: Mapping[str, float | None]) -> float:
        """The model's utility in [0, 1]: the benchmark's model utility where `metrics`, its own by name, hold one, else
        the greedy core metric on the utility group, or the accuracy on it."""
        own, protocol = metrics.get("model_utility"), benchmark.protocol
        if own is not None:
            return own
        return (self.greedy_means(protocol.core_metric) | self.accuracy)[protocol.utility_group]

    def sampling(self, decoding: str) -> Sampling:
        """The samples at the decoding of that name."""
        return next(each for each in self.samplings if each.decoding.name == decoding)


def evaluate(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str, bounds: bool = True
) -> Evaluation:
    """Sample and score one model: the leak groups at every decoding, all groups greedily. bounds: look for
    answers, too, whose exact probability bounds leak@k from below."""
    subject = Subject(stages, experiment, benchmark, model, label)
    samplings = sample_model(subject)
    served = isinstance(model, Endpoint) or experiment.sampling.tensor_parallel > 1  # too large for the exact path
    bounded = [each for each in samplings if bounds and not served and not each.greedy]
    answers = {each.decoding.name: _answers(subject, each) for each in bounded}
    likelihoods = None if served or not wants_likelihoods(benchmark) else _likelihoods(subject)
    scored = [{metric: sampling.scores(metric) for metric in sampling.metrics} for sampling in samplings]
    core_metric = benchmark.protocol.core_metric
    prompt_ids = {group: scores.prompt_ids for group, scores in scored[0][core_metric].items() if is_leak_group(group)}
    beside = [*answers.values(), *([likelihoods] if likelihoods is not None else [])]
    return Evaluation(
        samplings=samplings,
        leaks=_leaks(subject, samplings, scored),
        greedy={
            (group, metric): scores
            for metric, by_group in scored[-1].items()
            for group, scores in _seen(by_group, metric == core_metric).items()
        },
        prompt_ids=prompt_ids,
        known=_known(subject, samplings, answers, prompt_ids),
        tokens=sum(each.tokens for each in samplings),
        seconds=sum(each.seconds for each in samplings) + sum(stage.facts["seconds"] for stage in beside),
        stages=_folders(stages.store.root, samplings, answers, likelihoods),
        failures=_failures(samplings, core_metric),
        notes=_notes(subject, samplings, scored, likelihoods),
        likelihoods=None
        if likelihoods is None
        else read_likelihoods(likelihoods.path, likelihood_job(experiment, benchmark, model).examples),
        accuracy={} if served else accuracy(stages, experiment, benchmark, model, label),
        clusters=probe_clusters(benchmark),
    )


def _answers(subject: Subject, sampling: Sampling) -> FinishedStage:
    """Answers whose exact probability bounds leak@k from below."""
    experiment, metric = subject.experiment, subject.benchmark.protocol.core_metric
    job = sample_job(on_exact_path(experiment), subject.benchmark, subject.model, sampling.decoding)
    beams, tokens = experiment.leak.beams, experiment.sampling.max_new_tokens or 1
    units = unit_prompts(max(beams, 1), tokens, parameters_of(subject.model), bool(experiment.sampling.gpus))
    answers = AnswersJob(job, metric, experiment.metric_options.get(metric, {}), beams, units)
    return subject.stages.run(f"{subject.label} {sampling.decoding.name}", answers)


def _likelihoods(subject: Subject) -> FinishedStage:
    """What the benchmark's own metrics read."""
    return subject.stages.run(subject.label, likelihood_job(subject.experiment, subject.benchmark, subject.model))


def _leaks(subject: Subject, samplings: Sequence[Sampling], scored: Sequence[Scored]) -> Leaks:
    """leak@k of each prompt, from all that was sampled; where only greedy answers were asked for, leak@1 of these."""
    core_metric = subject.benchmark.protocol.core_metric
    greedy_alone = all(each.greedy for each in samplings)
    return {
        (group, metric, sampling.decoding.name): prompt_leaks(subject.experiment, scores.scores)
        for sampling, by_metric in zip(samplings, scored, strict=True)
        if greedy_alone or not sampling.greedy
        for metric, by_group in by_metric.items()
        for group, scores in _seen(by_group, metric == core_metric).items()
        if is_leak_group(group)
    }


def _seen(by_group: dict[str, GroupScores], core: bool) -> dict[str, GroupScores]:
    """The scores by group; of a metric beside the core metric without the groups of which it could score nothing."""
    return {group: of_group for group, of_group in by_group.items() if core or not np.isnan(of_group.scores).all()}


def prompt_leaks(experiment: Experiment, scores_PN: Floats) -> PromptLeaks:
    """leak@k of each prompt at the experiment's k. scores_PN: [prompts, samples] in [0, 1], NaN = failed."""
    k_K, confidence = np.array(experiment.leak.k), experiment.leak.confidence
    leaks = leaks_of_scores(scores_PN, k_K, confidence)
    if experiment.sampling.adaptive is None or leaks.samples == 1:
        return leaks
    width = sampling_half_width(scores_PN, int(k_K.max()), confidence)
    return dataclasses.replace(leaks, how="adaptive", half_width=None if np.isnan(width) else width)


def _known(
    subject: Subject,
    samplings: Sequence[Sampling],
    answers: Mapping[str, FinishedStage],
    prompt_ids: Mapping[str, list[str]],
) -> dict[Key, list[Known | None]]:
    """The known answers to each prompt: those that were looked for, and those that were sampled."""
    metric = subject.benchmark.protocol.core_metric
    known: dict[Key, list[Known | None]] = {}
    for sampling in samplings:
        name = sampling.decoding.name
        if name in answers:
            rounds = [(each.generations.path, each.scores[metric].path) for each in sampling.rounds]
            by_group = known_answers(answers[name].path, rounds)
            for group, ids in prompt_ids.items():
                known[group, metric, name] = [by_group.get(group, {}).get(prompt) for prompt in ids]
    return known


def _folders(
    root: Path,
    samplings: Sequence[Sampling],
    answers: Mapping[str, FinishedStage],
    likelihoods: FinishedStage | None,
) -> dict[str, str]:
    """Where all stages stand below the store, as results.json names them."""
    stages: dict[str, FinishedStage] = {}
    for sampling in samplings:
        name = sampling.decoding.name
        for number, each in enumerate(sampling.rounds, 1):
            stages[generations_stage(name, number)] = each.generations
            stages |= {scores_stage(name, metric, number): stage for metric, stage in each.scores.items()}
        if name in answers:
            stages[answers_stage(name)] = answers[name]
    if likelihoods is not None:
        stages["likelihoods"] = likelihoods
    return {key: stage.path.relative_to(root).as_posix() for key, stage in stages.items()}


def _failures(samplings: Sequence[Sampling], metric: str) -> dict[str, int]:
    """Samples without a score by the metric, by reason."""
    failures: Counter[str] = Counter()
    for sampling in samplings:
        for each in sampling.rounds:
            failures.update(each.scores[metric].facts["failures"])
    return dict(failures)


def _notes(
    subject: Subject,
    samplings: Sequence[Sampling],
    scored: Sequence[Scored],
    likelihoods: FinishedStage | None,
) -> list[str]:
    """What a reader of the results must know of how they came about, each once."""
    notes = [NO_LIKELIHOOD] if isinstance(subject.model, Endpoint) else []
    if subject.experiment.sampling.tensor_parallel > 1:
        notes.append(SHARED_MODEL)
    core_metric = subject.benchmark.protocol.core_metric
    for sampling, by_metric in zip(samplings, scored, strict=True):
        for each in sampling.rounds:
            notes += each.generations.facts.get("notes", [])
        for metric, by_group in by_metric.items():
            blank = set(by_group) - set(_seen(by_group, metric == core_metric))
            why = tally(sampling.rounds[0].scores[metric].facts["failures"])
            notes += [f"no score of {group} by {metric}: {why}" for group in sorted(blank)]
    if likelihoods is not None and (cut := likelihoods.facts.get("truncated")):
        texts = likelihoods.facts["pairs"]
        notes.append(f"likelihoods of {cut} of {texts} texts are of their beginnings: the context is too short")
    return list(dict.fromkeys(notes))


def reference_logprobs(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
) -> dict[str, list[float]]:
    """Log-probability of the reference answer of every probe about the forget set, end token included, by group.

    Raw probes have none: after running text nothing says where an answer ends.
    """
    probes = [probe for probe in benchmark.probes if is_leak_group(probe.group) and not probe.raw]
    if not probes:
        return {}
    examples = tuple(Example(probe.id, probe.prompt, probe.reference) for probe in probes)
    section = experiment.model
    options = section.template_options or None
    job = ReferenceJob(
        model,
        examples,
        section.template,
        section.system,
        options,
        max_length=MAX_LENGTH,
        gpus=experiment.sampling.gpus or 0.0,
        portable=experiment.portable,
    )
    logprobs: dict[str, list[float]] = {}
    for probe, logprob in zip(probes, read_reference(stages.run(f"{label} floor", job).path), strict=True):
        logprobs.setdefault(probe.group, []).append(logprob)
    return logprobs
