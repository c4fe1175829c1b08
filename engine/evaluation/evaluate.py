"""Evaluating one model: sample every group of probes, score by every metric, estimate leak@k and utility.

A model source and a benchmark come in, a ModelResult comes out. Knows nothing of how the model was made.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np

from benchmarks.base import Benchmark, Decoding, Example, Probe, is_leak_group
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import greedy_metrics, likelihood_examples, wants_likelihoods
from engine.leak.importance_weights import reweighted_leak
from engine.leak.per_prompt import PromptLeaks, leaks_of_scores
from engine.metrics import METRICS
from engine.models.source import ModelSource
from engine.reporting.results import tally
from engine.stages.base import Stages
from engine.stages.known_answers import AnswersJob, Known, known_answers
from engine.stages.likelihood import LikelihoodJob, Likelihoods, read_likelihoods
from engine.stages.reference import ReferenceJob, read_reference
from engine.stages.sample import SampleJob, sample_grid
from engine.stages.sample_adaptive import Pilot, Sequential, sample_on
from engine.stages.sample_endpoint import NO_LIKELIHOOD, Endpoint, EndpointJob
from engine.stages.sample_logprobs import RelogJob, read_relog
from engine.stages.score import GroupScores, group_scores, score_job
from engine.store.store import FinishedStage

SURE_METRICS = ("exact_fact", "rouge_l_recall", "rouge_l_f1")  # the reference answer itself scores 1 by these
RUN_MODELS = ("entailment", "cosine", "fluency")  # metrics that run a model of their own, on a GPU where there is one
MAX_LENGTH = 4096  # longest answer whose probability is computed, prompt included
Key = tuple[str, str, str]  # group, metric, decoding
Leaks = dict[Key, PromptLeaks]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One model's leak@k of each prompt by (group, metric, decoding), and greedy answers by (group, metric).

    prompt_ids: of each leak group, in the order of all that is by prompt. known: by (group, metric, decoding) the known
    answers to each prompt, None where there are none; empty where the model gives no probabilities. failures: samples
    without a score by the core metric, by reason. notes: for the reader. likelihoods: what the benchmark's own metrics
    read, None where it declares none or the model gives none. accuracy: by group of multiple-choice questions.
    """

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


def evaluate(
    stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
) -> Evaluation:
    """Sample and score one model: the leak groups at every decoding, all groups greedily."""
    found = _Evaluating(stages, experiment, benchmark, model, label)
    decodings = {each.name: each for each in experiment.sampling.decoding or ()}
    decodings.setdefault("greedy", Decoding(temperature=0.0))
    grid = {name: decoding for name, decoding in decodings.items() if name != "greedy"}
    first = next(iter(grid), None)  # the decoding that others may be reweighted from
    if first is not None and experiment.sampling.reweight:
        found.sampled({first: grid.pop(first)})
        grid = {name: decoding for name, decoding in grid.items() if not found.reweighted(name, decoding, first)}
    found.sampled(grid)
    found.sampled({"greedy": decodings["greedy"]})
    if wants_likelihoods(benchmark) and not isinstance(model, Endpoint):
        found.read_likelihoods()
    accuracy = {} if isinstance(model, Endpoint) else _accuracy(stages, experiment, benchmark, model, label)
    return found.evaluation(accuracy)


class _Evaluating:
    """One evaluation on its way: what the stages have given so far."""

    def __init__(
        self, stages: Stages, experiment: Experiment, benchmark: Benchmark, model: ModelSource, label: str
    ) -> None:
        self.stages, self.experiment, self.benchmark = stages, experiment, benchmark
        self.model, self.label = model, label
        self.core, self.k = benchmark.protocol.core_metric, np.array(experiment.leak.k)
        self.confidence = experiment.leak.confidence
        # Greedy answers alone: leak@1 is of these.
        self.alone = {each.name for each in experiment.sampling.decoding or ()} == {"greedy"}
        self.leaks: Leaks = {}
        self.greedy: dict[tuple[str, str], GroupScores] = {}
        self.prompt_ids: dict[str, list[str]] = {}
        self.known: dict[Key, list[Known | None]] = {}
        self.tokens, self.seconds = 0, 0.0
        self.folders: dict[str, str] = {}
        self.failures: Counter[str] = Counter()
        self.notes = [NO_LIKELIHOOD] if isinstance(model, Endpoint) else []
        self.likelihoods: Likelihoods | None = None

    def sampled(self, decodings: dict[str, Decoding]) -> None:
        """Draw the samples of these decodings and score them."""
        drawn = _sampled(self.stages, self.experiment, self.benchmark, self.model, decodings, self.label)
        for name, stage in drawn.items():
            self._score(name, decodings[name], stage)

    def _score(self, name: str, decoding: Decoding, sampled: FinishedStage) -> None:
        """Score one decoding's samples by every metric, by the core metric alone where more are to follow a pilot."""
        greedy, label = name == "greedy", f"{self.label} {name}"
        pilot = self.experiment.sampling.adaptive is not None and not greedy
        self.notes += [note for note in sampled.facts.get("notes", []) if note not in self.notes]
        self.tokens += sampled.facts["tokens"]
        self.seconds += sampled.facts["seconds"]
        self.folders[f"generations {name}"] = _below(self.stages, sampled)
        beside = greedy_metrics(self.benchmark) if greedy else ()
        metrics = (self.core,) if pilot else (*(self.experiment.metrics or ()), *beside)
        for metric in dict.fromkeys(metrics):
            scored = score(self.stages, self.experiment, label, sampled, metric)
            self.seconds += scored.facts["seconds"]
            self.folders[f"scores {name} {metric}"] = _below(self.stages, scored)
            if metric == self.core:
                self.failures.update(scored.facts["failures"])
            for group, values in group_scores(scored.path).items():
                if greedy:
                    self.greedy[group, metric] = values
                    if self.alone and is_leak_group(group):
                        self.prompt_ids[group] = values.prompt_ids
                        self.leaks[group, metric, name] = leaks_of_scores(values.scores, self.k, self.confidence)
                    continue
                self.prompt_ids[group] = values.prompt_ids
                if not pilot:
                    self.leaks[group, metric, name] = leaks_of_scores(values.scores, self.k, self.confidence)
            if metric == self.core and not greedy and not isinstance(self.model, Endpoint):
                job = sample_job(self.experiment, self.benchmark, self.model, decoding)
                self._answers(name, job, sampled, scored)

    def _answers(self, name: str, job: SampleJob, sampled: FinishedStage, scored: FinishedStage) -> None:
        """Look for answers whose exact probability bounds leak@k; sample on from them where that is asked for."""
        options = self.experiment.metric_options.get(self.core, {})
        stage = self.stages.run(f"{self.label} {name}", AnswersJob(job, self.core, options, self.experiment.leak.beams))
        self.seconds += stage.facts["seconds"]
        self.folders[f"answers {name}"] = _below(self.stages, stage)
        rounds = [(sampled.path, scored.path)]
        adaptive = self.experiment.sampling.adaptive
        if adaptive is not None:
            pilot = Pilot(job, sampled.path, scored.path, stage.path, self.core, options, tuple(self.k.tolist()))
            for group in self.prompt_ids:
                found = sample_on(
                    pilot,
                    group,
                    adaptive.half_width,
                    self.confidence,
                    adaptive.max_samples,
                    lambda job: self.stages.run(f"{self.label} {name}", job),
                )
                self.tokens += found.tokens
                self.seconds += found.seconds
                self.leaks[group, self.core, name] = leaks_of_adaptive(found)
                for number, folder in enumerate(found.folders, 1):
                    self.folders[f"round {number} {group} {name}"] = folder.relative_to(
                        self.stages.store.root
                    ).as_posix()
                    rounds.append((folder, folder))
        answers = known_answers(stage.path, rounds)
        for group, ids in self.prompt_ids.items():
            self.known[group, self.core, name] = [answers.get(group, {}).get(each) for each in ids]

    def reweighted(self, name: str, decoding: Decoding, drawn: str) -> bool:
        """Take one decoding from the samples of another, by the core metric; False where their weights are too uneven
        and it must be sampled."""
        if isinstance(self.model, Endpoint):
            return False
        origin = next(each for each in self.experiment.sampling.decoding or () if each.name == drawn)
        job = sample_job(self.experiment, self.benchmark, self.model, origin)
        generations = str(self.stages.store.root / self.folders[f"generations {drawn}"])
        relog = RelogJob(job, generations, (origin, decoding))
        stage = self.stages.run(f"{self.label} {name}", relog)
        self.seconds += stage.facts["seconds"]
        scores = group_scores(self.stages.store.root / self.folders[f"scores {drawn} {self.core}"])
        found: Leaks = {}
        for group, (log_drawn, log_wanted) in read_relog(stage.path, relog).items():
            if np.isnan(scores[group].scores).any():
                return False
            leak = reweighted_leak(scores[group].scores, log_drawn, log_wanted, self.k, self.confidence)
            if leak.warning is not None:
                return False
            means = leak.values[:, 0] if self.k[0] == 1 else np.full(len(leak.values), np.nan)
            found[group, self.core, name] = PromptLeaks(leak.values, means, job.n, 0, "reweighted")
        self.leaks |= found
        return True

    def read_likelihoods(self) -> None:
        """What the benchmark's own metrics read."""
        assert not isinstance(self.model, Endpoint)
        job = likelihood_job(self.experiment, self.benchmark, self.model)
        stage = self.stages.run(self.label, job)
        self.seconds += stage.facts["seconds"]
        self.folders["likelihoods"] = _below(self.stages, stage)
        self.likelihoods = read_likelihoods(stage.path, job.examples)
        if cut := stage.facts.get("truncated"):
            self.notes.append(
                f"likelihoods of {cut} of {len(job.examples)} texts are of their beginnings: the context is too short"
            )

    def evaluation(self, accuracy: dict[str, float]) -> Evaluation:
        return Evaluation(
            leaks=self.leaks,
            greedy=self.greedy,
            prompt_ids=self.prompt_ids,
            known=self.known,
            tokens=self.tokens,
            seconds=self.seconds,
            stages=self.folders,
            failures=dict(self.failures),
            notes=self.notes,
            likelihoods=self.likelihoods,
            accuracy=accuracy,
        )


def leaks_of_adaptive(found: Sequential) -> PromptLeaks:
    """leak@k of each prompt as adaptive sampling gives it; samples: the mean over prompts."""
    leak = found.leak
    return PromptLeaks(
        leak.values, found.means, round(leak.samples.mean()), found.failed, "adaptive", half_width=leak.half_width
    )


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
        workers=experiment.sampling.workers,
    )


def _sampled(
    stages: Stages,
    experiment: Experiment,
    benchmark: Benchmark,
    model: ModelSource,
    decodings: dict[str, Decoding],
    label: str,
) -> dict[str, FinishedStage]:
    """The generations at each decoding. A model at hand is loaded, and reads the prompts, once for all but greedy."""
    if isinstance(model, Endpoint):
        return {
            name: stages.run(f"{label} {name}", ask_job(experiment, benchmark, model, decoding))
            for name, decoding in decodings.items()
        }
    jobs = {name: sample_job(experiment, benchmark, model, decoding) for name, decoding in decodings.items()}
    grid = [name for name, decoding in decodings.items() if decoding.temperature > 0]
    found: dict[str, FinishedStage] = {}
    for names in (grid, [name for name in decodings if name not in grid]):
        if names:
            drawn = sample_grid(stages, f"{label} {', '.join(names)}", [jobs[name] for name in names])
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
    for probe, logprob in zip(probes, read_reference(stages.run(f"{label} floor", job).path), strict=True):
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
    job = LikelihoodJob(
        model, examples, template="raw", max_length=MAX_LENGTH, gpus=gpus, workers=experiment.sampling.workers
    )
    stage = stages.run(f"{label} choices", job)
    logprobs = iter([sum(each.logprobs) for each in read_likelihoods(stage.path, examples).of(pairs)])
    right: dict[str, list[bool]] = {}
    for each in choices:
        likeliest = int(np.argmax([next(logprobs) for _ in each.options]))
        right.setdefault(each.group, []).append(likeliest == each.answer)
    return {group: float(np.mean(hits)) for group, hits in right.items()}


def score(stages: Stages, experiment: Experiment, label: str, sampled: FinishedStage, metric: str) -> FinishedStage:
    """The scores of a sampling under one metric, with the experiment's options and devices."""
    gpus = experiment.sampling.gpus or 0.0 if METRICS[metric].module in RUN_MODELS else 0.0
    job = score_job(sampled, metric, experiment.metric_options.get(metric, {}), gpus)
    return stages.run(f"{label} by {metric}", job)


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
    adaptive = experiment.sampling.adaptive
    n = experiment.sampling.n if adaptive is None else adaptive.pilot
    return probes, 1 if greedy else n or 1


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
        workers=sampling.workers,
    )


def _below(stages: Stages, stage: FinishedStage) -> str:
    return stage.path.relative_to(stages.store.root).as_posix()
