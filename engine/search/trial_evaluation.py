"""Evaluating one model of a search: how much it leaks on the prompts that decide, at any rung, and what it keeps.

A search's Setting and a model come in, a LeakEstimate or a Kept comes out. Runs the same stages as an evaluation, so
that the models that all trials share are sampled once. Knows nothing of trials.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from benchmarks.base import Benchmark, Decoding, Probe, probe_clusters
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import benchmark_metrics, greedy_metrics
from engine.evaluation.evaluate import SURE_METRICS, evaluate, reference_logprobs
from engine.evaluation.jobs import job_for, score
from engine.leak.bounds import leak_floor
from engine.leak.clusters import clusters_of
from engine.leak.curve import leak_curve
from engine.leak.estimator import Floats, prompt_leak
from engine.leak.extrapolation import fit_leak_model
from engine.leak.intervals import population_mean
from engine.metrics import METRICS
from engine.metrics import score as metric_score
from engine.models.source import ModelSource
from engine.robustness.base import Attack, ModelAttack, PromptAttack
from engine.robustness.base import Setting as AttackSetting
from engine.robustness.joint import origin, pooled
from engine.search.objective import deciding
from engine.search.prompt_split import shuffled
from engine.search.space import Rung, Space
from engine.search.trial_report import LeakEstimate
from engine.stages.base import Stages
from engine.stages.sample import SampleJob
from engine.stages.score import GroupScores, group_scores

FEW = 64  # prompts of a first estimate of utility


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all trials of a search share. experiment: with its protocol and devices filled in; least: what a trial must
    keep, by name; group, metric: what the objective is taken on; retain: the model to take the excess over, if any;
    attack: what the objective is taken after, if anything; target: the model before unlearning, for an attack."""

    experiment: Experiment
    space: Space
    store: str
    group: str
    metric: str
    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    retain: ModelSource | None = None
    attack: Attack | None = None
    target: ModelSource | None = None

    @property
    def decoding(self) -> Decoding:
        """The decoding that the objective is taken at: the first that samples."""
        return next(
            (decoding for decoding in self.experiment.sampling.decoding or () if decoding.temperature > 0), Decoding()
        )

    @property
    def full(self) -> Rung:
        """What finalists are sampled at: every prompt that decides, sampling.n samples of each."""
        return Rung(n=self.experiment.sampling.n or 1)

    @property
    def objective(self) -> str:
        """What is made small, in words: "leak@64 after relearn-0.1"."""
        after = f" after {self.attack.title}" if self.attack is not None else ""
        return f"leak@{self.space.objective.k}{after}"

    def deciding(self, benchmark: Benchmark) -> list[Probe]:
        """The prompts that trials are judged on."""
        return deciding(benchmark, self.group, self.experiment.seed, self.attack)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a model keeps, by name, and the tokens that were sampled to measure it."""

    values: dict[str, float]
    tokens: int


def estimate_leak(
    setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, rung: Rung
) -> LeakEstimate:
    """leak@k of one model at one rung, after the objective's attack where it has one; minus the retain model's, too,
    where it is sampled in full."""
    own, tokens = _sampled_after_attack(setting, stages, benchmark, model, rung)
    retain = None
    if setting.retain is not None and rung == setting.full:
        retain = _sampled_after_attack(setting, stages, benchmark, setting.retain, rung)[0].scores
    wanted = setting.space.objective.k
    k = min(wanted, own.scores.shape[1])
    clusters = [probe_clusters(benchmark).get(prompt_id) for prompt_id in own.prompt_ids]
    curve = leak_curve(own.scores, [k], setting.experiment.leak.confidence, retain, clusters=clusters)
    leak, low, high = (float(values[0]) for values in (curve.leak, curve.low, curve.high))
    bound = leak_at_least(setting, benchmark, own.scores, rung)
    predicted = max(bound, predict(own.scores, leak, wanted) if k < wanted else leak)
    estimate = LeakEstimate(rung.n, k, leak, low, high, bound, predicted, tokens)
    if curve.excess is None or curve.excess_low is None or curve.excess_high is None:
        return estimate
    excess, low, high = (float(values[0]) for values in (curve.excess, curve.excess_low, curve.excess_high))
    return dataclasses.replace(estimate, excess=excess, excess_low=low, excess_high=high)


def leak_at_least(setting: Setting, benchmark: Benchmark, scores: Floats, rung: Rung) -> float:
    """leak@k in full if every further sample, and every further prompt, scores nothing.

    A sample's randomness comes from seed, prompt and index alone, so these are the first of all samples: in full it
    cannot be less, and a trial that is ruled out by this would not have won. scores: [prompts, samples], NaN where the
    metric failed; of a prompt attack rung.n samples for each family.
    """
    families = scores.shape[1] // rung.n
    padded = np.zeros((len(setting.deciding(benchmark)), families * setting.full.n))
    padded[: len(scores), : scores.shape[1]] = np.nan_to_num(scores)
    return float(prompt_leak(padded, np.array([setting.space.objective.k])).mean())


def predict(scores: Floats, leak: float, k: int) -> float:
    """leak@k beyond the samples at hand, by the leak model where scores are 0 or 1 and some leak; else `leak`, what was
    observed. For the order of trials alone."""
    known_P = (~np.isnan(scores)).sum(axis=1)
    if not np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all() or not np.nansum(scores) or not known_P.all():
        return leak
    model = fit_leak_model(np.nansum(scores, axis=1).astype(np.int64), known_P)
    return max(leak, float(model.leak_at_k(np.array([k]))[0]))


def greedy_score(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> tuple[float, int]:
    """The mean score of one greedy answer to each prompt that decides, before any attack: what a search without
    sampling would go by, and the tokens of these answers."""
    scored, tokens = _sampled(setting, stages, benchmark, model, Rung(n=1), Decoding(temperature=0.0))
    return float(np.nanmean(scored.scores)), tokens


def exact_floor(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> LeakEstimate:
    """A lower bound on the objective without any sample, from the probability of the reference answers; 0 where the
    metric, the decoding or the prompts allow none, or these are asked otherwise."""
    chosen = setting.deciding(benchmark)
    k = setting.space.objective.k
    bound = 0.0
    asked = not isinstance(setting.attack, PromptAttack) and not any(probe.raw for probe in chosen)
    if asked and _sure(setting, chosen) and setting.decoding == Decoding():
        attacked = _attacked(setting, stages, benchmark, model)
        logprobs = reference_logprobs(stages, setting.experiment, benchmark, attacked, "trial").get(setting.group, [])
        by_id = dict(zip([probe.id for probe in benchmark.group(setting.group)], logprobs, strict=True))
        bound = float(np.mean([leak_floor([min(by_id[probe.id], 0.0)], k) for probe in chosen]))
    return LeakEstimate(n=0, k=k, leak=bound, low=bound, high=1.0, bound=0.0, predicted=bound)


def _sure(setting: Setting, probes: list[Probe]) -> bool:
    """Whether the reference answer itself scores 1 by the metric, whichever of these probes it is of."""
    if setting.metric not in SURE_METRICS:
        return False
    references = [probe.reference for probe in probes]
    truths = [METRICS[setting.metric].truth(probe.reference, probe.fact) for probe in probes]
    options = setting.experiment.metric_options.get(setting.metric, {})
    return all(value == 1.0 for value in metric_score(setting.metric, references, truths, **options))


def surely_too_low(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> Kept | None:
    """Utility on a few prompts where its interval there is below what must be kept, else no values. None
    where more than the greedy core metric must be kept, or a few prompts are most of them: the whole is as cheap."""
    protocol = benchmark.protocol
    probes = shuffled(benchmark.group(protocol.utility_group), setting.experiment.seed)
    if set(setting.least) != {"utility"} or protocol.model_utility or len(probes) < 2 * FEW:
        return None
    job = _job(setting, model, probes[:FEW], Decoding(temperature=0.0), 1)
    sampled = stages.run("trial few", job)
    scores = group_scores(score(stages, setting.experiment, "trial few", sampled, protocol.core_metric).path)
    values = scores[protocol.utility_group].scores
    _, high = population_mean(values, clusters_of(None, len(values))).ends(1 - setting.experiment.leak.confidence)
    low = {"utility": float(values.mean())} if high[0] < setting.least["utility"] else {}
    return Kept(low, int(sampled.facts["tokens"]))


def kept(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, label: str) -> Kept:
    """Utility as a run reports it, and whatever else `keep` may name, from greedy answers and likelihoods."""
    experiment, protocol = setting.experiment, benchmark.protocol
    named = tuple(name for name in setting.space.keep if name in METRICS)
    sampling = experiment.sampling.model_copy(update={"decoding": (Decoding(temperature=0.0),)})
    metrics = tuple(dict.fromkeys((protocol.core_metric, *named)))
    greedily = experiment.model_copy(update={"sampling": sampling, "metrics": metrics})
    measured = evaluate(stages, greedily, benchmark, model, label)
    greedy = {name: measured.greedy_means(name) for name in greedy_metrics(benchmark)}
    own, _ = benchmark_metrics(benchmark, greedy, measured.likelihoods, None)
    values = {name: value for name, value in own.items() if value is not None}
    means = {name: measured.greedy_means(name).get(protocol.utility_group) for name in named}
    values |= {name: mean for name, mean in means.items() if mean is not None}
    return Kept(values | {"utility": measured.utility(benchmark, own)}, measured.tokens)


def least(setting: Setting, target: Kept) -> dict[str, float]:
    """What a trial must keep, by name. UserError where the target model has no such value."""
    for name in setting.space.keep:
        if name not in target.values:
            raise UserError(f"keep: {name} has no value for the target model; keep another metric, or utility")
    return {name: share * target.values[name] for name, share in setting.space.keep.items()}


def _sampled(
    setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, rung: Rung, decoding: Decoding
) -> tuple[GroupScores, int]:
    """Scores of the prompts that decide, or of the rung's share of them, and the tokens that they took."""
    scores, tokens = _scored(setting, stages, model, _share(setting, benchmark, rung), decoding, rung.n)
    return scores[setting.group], tokens


def _sampled_after_attack(
    setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, rung: Rung
) -> tuple[GroupScores, int]:
    """As `_sampled` at the objective's decoding, after its attack; all families of a prompt attack put together."""
    if not isinstance(setting.attack, PromptAttack):
        attacked = _attacked(setting, stages, benchmark, model)
        return _sampled(setting, stages, benchmark, attacked, rung, setting.decoding)
    chosen = {probe.id for probe in _share(setting, benchmark, rung)}
    families = setting.attack.asked(benchmark, setting.experiment.model.endpoint is not None).values()
    probes = [probe for family in families for probe in family if origin(probe.id) in chosen]
    scores, tokens = _scored(setting, stages, model, probes, setting.decoding, rung.n)
    return pooled(scores), tokens


def _attacked(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> ModelSource:
    """The model after the objective's attack on its weights; itself where the attack leaves it as it is."""
    if not isinstance(setting.attack, ModelAttack):
        return model
    attacking = AttackSetting(stages, setting.experiment, benchmark, setting.target)
    return setting.attack.attacked(attacking, f"trial {setting.attack.title}", model) or model


def _share(setting: Setting, benchmark: Benchmark, rung: Rung) -> list[Probe]:
    chosen = setting.deciding(benchmark)
    return chosen[: max(1, round(rung.prompts * len(chosen)))]


def _scored(
    setting: Setting, stages: Stages, model: ModelSource, probes: list[Probe], decoding: Decoding, n: int
) -> tuple[dict[str, GroupScores], int]:
    sampled = stages.run(f"trial {decoding.name}", _job(setting, model, probes, decoding, n))
    scored = score(stages, setting.experiment, "trial", sampled, setting.metric)
    return group_scores(scored.path), int(sampled.facts["tokens"])


def _job(setting: Setting, model: ModelSource, probes: list[Probe], decoding: Decoding, n: int) -> SampleJob:
    job = job_for(setting.experiment, model, probes, decoding, n, setting.experiment.seed)
    return dataclasses.replace(job, retokenise=setting.experiment.sampling.compat == "leak-k")
