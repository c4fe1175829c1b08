"""Evaluating one model: sample every group of probes, score by every metric, estimate leak@k and utility.

A model source and a benchmark come in, a ModelResult comes out. Knows nothing of how the model was made.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.base import Benchmark, Decoding, Example, Probe
from engine.benchmark_metrics import greedy_metrics, likelihood_examples, wants_likelihoods
from engine.endpoint import NO_LIKELIHOOD, Endpoint, EndpointJob
from engine.errors import UserError
from engine.experiment import Experiment
from engine.floor import leak_floor
from engine.guarantees import mean_leak_bound
from engine.leak import leak_curve, prompt_leak, valid_samples
from engine.likelihood import LikelihoodJob, Likelihoods, read_likelihoods
from engine.metrics import METRICS
from engine.models import ModelSource
from engine.reference import ReferenceJob
from engine.results import Curve, tally
from engine.sample import SampleJob
from engine.scoring import GroupScores, group_scores
from engine.stages import Stages
from engine.store import Stage

SURE_METRICS = ("exact_fact", "rouge_l_recall", "rouge_l_f1")  # the reference answer itself scores 1 by these
RUN_MODELS = ("entailment", "cosine", "fluency")  # metrics that run a model of their own, on a GPU where there is one
MAX_LENGTH = 4096  # longest answer whose probability is computed, prompt included
Scores = dict[tuple[str, str, str], GroupScores]  # (group, metric, decoding) -> scores


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's scores: n samples a prompt by (group, metric, decoding), and greedy answers by (group, metric).

    reference_logprobs: by leak group, log-probability of each prompt's reference answer at T = 1, p = 1; empty
    where the model gives none. failures: samples without a score by the core metric, by reason. notes: for the reader.
    likelihoods: what the benchmark's own metrics read, None where it declares none or the model gives none.
    accuracy: by group of multiple-choice questions.
    """

    scores: Scores
    greedy: dict[tuple[str, str], GroupScores]
    reference_logprobs: dict[str, list[float]]
    tokens: int
    seconds: float
    stages: dict[str, str]
    failures: dict[str, int]
    notes: list[str]
    likelihoods: Likelihoods | None = None
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)

    def greedy_means(self, metric: str) -> dict[str, float]:
        """Mean greedy score of each group of probes; samples that the metric failed on are left out."""
        found = {}
        for (group, name), each in self.greedy.items():
            if name == metric:
                if np.isnan(each.scores).all():
                    raise UserError(f"{group}: every greedy answer lacks a score by {metric} ({tally(self.failures)})")
                found[group] = float(np.nanmean(each.scores))
        return found

    def utility(self, benchmark: Benchmark, metrics: Mapping[str, float | None]) -> float:
        """The model's utility in [0, 1]: the benchmark's model utility where `metrics`, its own by name, hold one, else
        the greedy core metric on the utility group, or the accuracy on it."""
        own, protocol = metrics.get("model_utility"), benchmark.protocol
        if own is not None:
            return own
        return (self.greedy_means(protocol.core_metric) | self.accuracy)[protocol.utility_group]


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
    failures: Counter[str] = Counter()
    notes = [NO_LIKELIHOOD] if isinstance(model, Endpoint) else []
    decodings = {decoding_name(each): each for each in experiment.sampling.decoding or ()}
    decodings.setdefault("greedy", Decoding(temperature=0.0))
    for name, sampled in _sampled(stages, experiment, benchmark, model, decodings, label).items():
        notes += [note for note in sampled.facts.get("notes", []) if note not in notes]
        tokens += sampled.facts["tokens"]
        seconds += sampled.facts["seconds"]
        folders[f"generations {name}"] = _below(stages, sampled)
        beside = greedy_metrics(benchmark) if name == "greedy" else ()
        for metric in dict.fromkeys((*(experiment.metrics or ()), *beside)):
            scored = score(stages, experiment, f"{label} {name}", sampled, metric)
            seconds += scored.facts["seconds"]
            if metric == benchmark.protocol.core_metric:
                failures.update(scored.facts["failures"])
            folders[f"scores {name} {metric}"] = _below(stages, scored)
            for group, values in group_scores(scored.path).items():
                if name == "greedy":
                    greedy[group, metric] = values
                if name != "greedy" or (list(decodings) == ["greedy"] and is_leak_group(group)):
                    scores[group, metric, name] = values
    logprobs: dict[str, list[float]] = {}
    likelihoods = None
    if not isinstance(model, Endpoint):
        logprobs = reference_logprobs(stages, experiment, benchmark, model, label)
    if wants_likelihoods(benchmark) and not isinstance(model, Endpoint):
        job = likelihood_job(experiment, benchmark, model)
        stage = stages.likelihoods(label, job)
        seconds += stage.facts["seconds"]
        folders["likelihoods"] = _below(stages, stage)
        likelihoods = read_likelihoods(stage.path, job.examples)
        if cut := stage.facts.get("truncated"):
            notes.append(
                f"likelihoods of {cut} of {len(job.examples)} texts are of their beginnings: the context is too short"
            )
    accuracy = {} if isinstance(model, Endpoint) else _accuracy(stages, experiment, benchmark, model, label)
    return Evaluation(scores, greedy, logprobs, tokens, seconds, folders, dict(failures), notes, likelihoods, accuracy)


def likelihood_job(experiment: Experiment, benchmark: Benchmark, model: ModelSource) -> LikelihoodJob:
    """Every likelihood under one model that the benchmark's own metrics read."""
    examples, gradients = likelihood_examples(benchmark)
    return LikelihoodJob(
        model=model,
        examples=examples,
        gradients=gradients,
        template=experiment.model.template,
        system=experiment.model.system,
        max_length=MAX_LENGTH,
        gpus=experiment.sampling.gpus or 0.0,
    )


def _sampled(
    stages: Stages,
    experiment: Experiment,
    benchmark: Benchmark,
    model: ModelSource,
    decodings: dict[str, Decoding],
    label: str,
) -> dict[str, Stage]:
    """The generations at each decoding. A model at hand is loaded, and reads the prompts, once for all but greedy."""
    if isinstance(model, Endpoint):
        return {
            name: stages.ask(f"{label} {name}", ask_job(experiment, benchmark, model, decoding))
            for name, decoding in decodings.items()
        }
    jobs = {name: sample_job(experiment, benchmark, model, decoding) for name, decoding in decodings.items()}
    grid = [name for name, decoding in decodings.items() if decoding.temperature > 0]
    found: dict[str, Stage] = {}
    for names in (grid, [name for name in decodings if name not in grid]):
        if names:
            drawn = stages.sample_grid(f"{label} {', '.join(names)}", [jobs[name] for name in names])
            found |= zip(names, drawn, strict=True)
    return {name: found[name] for name in decodings}


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
    job = ReferenceJob(model, examples, experiment.model.template, experiment.model.system, MAX_LENGTH)
    found: dict[str, list[float]] = {}
    for probe, logprob in zip(probes, stages.reference(f"{label} floor", job), strict=True):
        found.setdefault(probe.group, []).append(logprob)
    return found


def _accuracy(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
) -> dict[str, float]:
    """Share of each group's multiple-choice questions whose right option is the likeliest: sum of its log-probabilities
    after the prompt without template, lm-evaluation-harness's convention."""
    choices, gpus = benchmark.choices, experiment.sampling.gpus or 0.0
    if not choices:
        return {}
    pairs = [(each.prompt, option) for each in choices for option in each.options]
    examples = tuple(Example(str(index), *pair) for index, pair in enumerate(pairs))
    job = LikelihoodJob(model, examples, template="raw", max_length=MAX_LENGTH, gpus=gpus)
    stage = stages.likelihoods(f"{label} choices", job)
    logprobs = iter([sum(each.logprobs) for each in read_likelihoods(stage.path, examples).of(pairs)])
    right: dict[str, list[bool]] = {}
    for each in choices:
        likeliest = int(np.argmax([next(logprobs) for _ in each.options]))
        right.setdefault(each.group, []).append(likeliest == each.answer)
    return {group: float(np.mean(hits)) for group, hits in right.items()}


def score(stages: Stages, experiment: Experiment, label: str, sampled: Stage, metric: str) -> Stage:
    """The scores of a sampling under one metric, with the experiment's options and devices."""
    gpus = experiment.sampling.gpus or 0.0 if METRICS[metric].module in RUN_MODELS else 0.0
    return stages.score(label, sampled, metric, experiment.metric_options.get(metric, {}), gpus)


def sample_job(experiment: Experiment, benchmark: Benchmark, model: ModelSource, decoding: Decoding) -> SampleJob:
    """What `evaluate` samples at one decoding: leak groups n times, or every group once where it is greedy."""
    probes, n = _asked(experiment, benchmark, decoding)
    job = job_for(experiment, model, probes, decoding, n, experiment.seed)
    return dataclasses.replace(job, retokenise=experiment.sampling.compat == "leak-k")


def ask_job(experiment: Experiment, benchmark: Benchmark, model: Endpoint, decoding: Decoding) -> EndpointJob:
    """`sample_job` for a model behind a server: through its chat endpoint unless the template is plain."""
    probes, n = _asked(experiment, benchmark, decoding)
    if any(probe.raw or probe.cut_reference for probe in probes):
        raise UserError(
            f"--endpoint: benchmark {benchmark.name} continues raw text, cut by tokens, which a server cannot be asked "
            "for; evaluate the model from its weights"
        )
    return EndpointJob(
        model,
        tuple(probes),
        decoding,
        n,
        max_new_tokens=experiment.sampling.max_new_tokens or 1,
        seed=experiment.seed,
        chat=experiment.model.template != "plain",
        system=experiment.model.system,
    )


def _asked(experiment: Experiment, benchmark: Benchmark, decoding: Decoding) -> tuple[list[Probe], int]:
    greedy = decoding.temperature == 0
    probes = [probe for probe in benchmark.probes if greedy or is_leak_group(probe.group)]
    return probes, 1 if greedy else experiment.sampling.n or 1


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
    """leak@k of every group, metric and decoding, its bounds, and the excess over the retain model if there is one."""
    return [
        _curve(experiment, evaluation, key, retain.scores.get(key) if retain is not None else None)
        for key in evaluation.scores
    ]


def _curve(
    experiment: Experiment, evaluation: Evaluation, key: tuple[str, str, str], retain: GroupScores | None
) -> Curve:
    group, metric, decoding = key
    scores, confidence = evaluation.scores[key].scores, experiment.leak.confidence
    yardstick = retain.scores if retain is not None else None
    ks = list(experiment.leak.k or ())
    enough = valid_samples(*(each for each in (scores, yardstick) if each is not None)) >= max(ks)
    if not enough.any():
        raise UserError(
            f"leak@{max(ks)} of {group} by {metric}: no prompt has as many samples with a score "
            f"({tally(evaluation.failures)}); ask for smaller leak.k or draw more, sampling.n"
        )
    curve = leak_curve(scores, ks, confidence, yardstick, experiment.seed)
    kept = valid_samples(scores) >= curve.k.max()
    values = curve.as_dict()
    values = {field.name: values[field.name] for field in dataclasses.fields(Curve) if field.name in values}
    return Curve(
        group=group,
        metric=metric,
        decoding=decoding,
        bound=mean_leak_bound(prompt_leak(scores[kept], curve.k), confidence).tolist(),
        floor=_floor(evaluation, group, metric, decoding, curve.k),
        **values,
    )


def _floor(evaluation: Evaluation, group: str, metric: str, decoding: str, k: Any) -> list[float] | None:
    """Mean over the prompts of the lower bound on leak@k that the reference answer alone gives."""
    known = evaluation.reference_logprobs.get(group)
    if known is None or decoding != decoding_name(Decoding()) or metric not in SURE_METRICS:
        return None
    return np.mean([leak_floor([min(logprob, 0.0)], k) for logprob in known], axis=0).tolist()


def _below(stages: Stages, stage: Stage) -> str:
    return stage.path.relative_to(stages.store.root).as_posix()
