"""Looks at one model of a search: how much it leaks on the prompts that decide, as dear as asked, and what it keeps.

A search's Setting and a model come in, a Look or a Kept comes out. Runs the same stages as an evaluation, so that the
models that all trials share are sampled once. Knows nothing of trials.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.base import Benchmark, Decoding, Probe
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import benchmark_metrics, greedy_metrics
from engine.evaluation.evaluate import SURE_METRICS, evaluate, job_for, reference_logprobs, score
from engine.leak.bounds import leak_floor
from engine.leak.estimator import Floats, leak_curve, prompt_leak
from engine.leak.extrapolation import fit_leak_model
from engine.leak.intervals import mean_interval
from engine.metrics import METRICS
from engine.models.source import ModelSource
from engine.search.space import Rung, Space
from engine.stages.base import Stages
from engine.stages.sample import SampleJob
from engine.stages.score import GroupScores, group_scores

FEW = 64  # prompts of a first look at utility
WORST = 2.0  # the objective of a trial that failed: above every leak@k


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all trials of a search share. experiment: with its protocol and devices filled in; least: what a trial must
    keep, by name; group, metric: what the objective is taken on; retain: the model to take the excess over, if any."""

    experiment: Experiment
    space: Space
    store: str
    group: str
    metric: str
    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    retain: ModelSource | None = None

    @property
    def decoding(self) -> Decoding:
        """The decoding that the objective is taken at: the first that samples."""
        return next((each for each in self.experiment.sampling.decoding or () if each.temperature > 0), Decoding())

    @property
    def whole(self) -> Rung:
        """The look that finalists get: every prompt that decides, sampling.n samples of each."""
        return Rung(n=self.experiment.sampling.n or 1)


@dataclasses.dataclass(frozen=True)
class Look:
    """n: samples a prompt, 0 where none were drawn. leak: leak@k with its interval [low, high], at the largest k up to
    the objective's that n allows. bound: what the full look will find at least, surely: its first samples are these.
    predicted: a guess at what it will find. excess: likewise over the retain model, NaN where it was not asked for.
    tokens: sampled for this look."""

    n: int
    k: int
    leak: float
    low: float
    high: float
    bound: float
    predicted: float
    tokens: int = 0
    excess: float = math.nan
    excess_low: float = math.nan
    excess_high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a model keeps, by name, and the tokens that it took to know."""

    values: dict[str, float]
    tokens: int


def look(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, rung: Rung) -> Look:
    """leak@k of one model at one rung; the excess over the retain model where every sample is drawn."""
    found, tokens = _sampled(setting, stages, benchmark, model, rung, setting.decoding)
    yardstick = None
    if setting.retain is not None and rung == setting.whole:
        yardstick = _sampled(setting, stages, benchmark, setting.retain, rung, setting.decoding)[0].scores
    wanted = setting.space.objective.k
    k = min(wanted, rung.n)
    curve = leak_curve(found.scores, [k], setting.experiment.leak.confidence, yardstick, setting.experiment.seed)
    leak, low, high = (float(each[0]) for each in (curve.leak, curve.low, curve.high))
    bound = at_least(setting, benchmark, found.scores)
    predicted = max(bound, predict(found.scores, leak, wanted) if k < wanted else leak)
    seen = Look(rung.n, k, leak, low, high, bound, predicted, tokens)
    if curve.excess is None or curve.excess_low is None or curve.excess_high is None:
        return seen
    excess, low, high = (float(each[0]) for each in (curve.excess, curve.excess_low, curve.excess_high))
    return dataclasses.replace(seen, excess=excess, excess_low=low, excess_high=high)


def at_least(setting: Setting, benchmark: Benchmark, scores: Floats) -> float:
    """What the full look finds where every further sample, and every further prompt, scores nothing.

    A sample's randomness comes from seed, prompt and index alone, so these are the first samples of the full look; it
    cannot find less, and a trial that is ruled out by this would not have won. scores: [prompts, samples], NaN where
    the metric failed.
    """
    prompts = len(deciding(benchmark.group(setting.group), setting.experiment.seed))
    padded = np.zeros((prompts, setting.whole.n))
    padded[: len(scores), : scores.shape[1]] = np.nan_to_num(scores)
    return float(prompt_leak(padded, np.array([setting.space.objective.k])).mean())


def predict(scores: Floats, leak: float, k: int) -> float:
    """leak@k beyond the samples at hand, by the leak model where scores are 0 or 1 and some leak; else no more than
    what was seen. For the order of trials alone."""
    known_P = (~np.isnan(scores)).sum(axis=1)
    if not np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all() or not np.nansum(scores) or not known_P.all():
        return leak
    model = fit_leak_model(np.nansum(scores, axis=1).astype(np.int64), known_P)
    return max(leak, float(model.leak_at_k(np.array([k]))[0]))


def greedy_score(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> Look:
    """The mean score of one greedy answer to each prompt that decides: what a search without sampling would go by."""
    found, tokens = _sampled(setting, stages, benchmark, model, Rung(n=1), Decoding(temperature=0.0))
    mean = float(np.nanmean(found.scores))
    return Look(1, 1, mean, mean, mean, 0.0, mean, tokens)


def floor(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> Look:
    """A lower bound on the objective without any sample, from the probability of the reference answers; 0 where the
    metric, the decoding or the prompts allow none."""
    chosen = deciding(benchmark.group(setting.group), setting.experiment.seed)
    k = setting.space.objective.k
    bound = 0.0
    if setting.metric in SURE_METRICS and setting.decoding == Decoding() and not any(each.raw for each in chosen):
        every = reference_logprobs(stages, setting.experiment, benchmark, model, "trial").get(setting.group, [])
        by_id = dict(zip([each.id for each in benchmark.group(setting.group)], every, strict=True))
        bound = float(np.mean([leak_floor([min(by_id[each.id], 0.0)], k) for each in chosen]))
    return Look(0, k, bound, bound, 1.0, 0.0, bound)


def surely_too_low(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> Kept | None:
    """Utility on a few prompts where its interval there lies below what must be kept; no values where it does not. None
    where more than the greedy core metric must be kept, or a few prompts are most of them: the whole is as cheap."""
    protocol = benchmark.protocol
    asked = sorted(benchmark.group(protocol.utility_group), key=lambda each: _rank(setting.experiment.seed, each.id))
    if set(setting.least) != {"utility"} or protocol.model_utility or len(asked) < 2 * FEW:
        return None
    job = _job(setting, model, asked[:FEW], Decoding(temperature=0.0), 1)
    sampled = stages.run("trial few", job)
    scores = group_scores(score(stages, setting.experiment, "trial few", sampled, protocol.core_metric).path)
    values = scores[protocol.utility_group].scores
    _, high = mean_interval(values, setting.experiment.leak.confidence, setting.experiment.seed)
    low = {"utility": float(values.mean())} if high[0] < setting.least["utility"] else {}
    return Kept(low, int(sampled.facts["tokens"]))


def kept(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, label: str) -> Kept:
    """Utility as a run reports it, and whatever else `keep` may name, from greedy answers and likelihoods."""
    experiment, protocol = setting.experiment, benchmark.protocol
    named = tuple(name for name in setting.space.keep if name in METRICS)
    sampling = experiment.sampling.model_copy(update={"decoding": (Decoding(temperature=0.0),)})
    metrics = tuple(dict.fromkeys((protocol.core_metric, *named)))
    greedily = experiment.model_copy(update={"sampling": sampling, "metrics": metrics})
    found = evaluate(stages, greedily, benchmark, model, label)
    beside = {name: found.greedy_means(name) for name in greedy_metrics(benchmark)}
    own, _ = benchmark_metrics(benchmark, beside, found.likelihoods, None)
    values = {name: value for name, value in own.items() if value is not None}
    values |= {name: found.greedy_means(name)[protocol.utility_group] for name in named}
    return Kept(values | {"utility": found.utility(benchmark, own)}, found.tokens)


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
    chosen = deciding(benchmark.group(setting.group), setting.experiment.seed)
    chosen = chosen[: max(1, round(rung.prompts * len(chosen)))]
    job = _job(setting, model, chosen, decoding, rung.n)
    sampled = stages.run(f"trial {decoding.name}", job)
    scored = score(stages, setting.experiment, "trial", sampled, setting.metric)
    tokens: Any = sampled.facts["tokens"]
    return group_scores(scored.path)[setting.group], int(tokens)


def _job(setting: Setting, model: ModelSource, probes: list[Probe], decoding: Decoding, n: int) -> SampleJob:
    job = job_for(setting.experiment, model, probes, decoding, n, setting.experiment.seed)
    return dataclasses.replace(job, retokenise=setting.experiment.sampling.compat == "leak-k")


def deciding(probes: list[Probe], seed: int) -> list[Probe]:
    """The half of the prompts that a search decides on; by whole entities where the ids tell several, and in an order
    that makes the first few a sample of all. The other half is kept for the report."""
    whole = {each.id: entity(each) for each in probes}
    names = whole if len(set(whole.values())) > 1 else {each.id: each.id for each in probes}
    ranked = sorted(set(names.values()), key=lambda name: _rank(seed, name))
    half = set(ranked[: max(1, len(ranked) // 2)])
    return sorted((each for each in probes if names[each.id] in half), key=lambda each: _rank(seed, each.id))


def entity(probe: Probe) -> str:
    """What a prompt is about, as far as its id tells: author54 of author54/birthdate/paraphrase, else the id."""
    first, slash, _ = probe.id.partition("/")
    return first if slash and any(each.isdigit() for each in first) and not first.startswith("forget") else probe.id


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
