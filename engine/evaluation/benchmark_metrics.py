"""The metrics that a benchmark's own papers report beside leak@k, from likelihoods and greedy ROUGE.

A benchmark's declarations (its protocol), one model's likelihoods and the retain model's come in; a value for each
metric comes out, or the reason why there is none. Knows nothing of how likelihoods are computed.

    model_utility     harmonic mean of probability, ROUGE and truth ratio over the groups in protocol.model_utility
    forget_quality    KS test of the forget group's truth ratios against the retain model's; also its log10
    extraction_strength, exact_memorization    of the forget group's answers
    mia_ATTACK        AUC of members against the holdout set; privleak: that of Min-40% against the retain model's,
                      privleak_published: against that of the published retain model
    probability.GROUP, rouge.GROUP, truth_ratio.GROUP; names in protocol.greedy_means; fluency.GROUP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.base import Benchmark, Example, Probe
from engine.leak.estimator import Floats
from engine.metrics import likelihood, memorization, privacy
from engine.stages.likelihood import Likelihoods

NO_RETAIN = "needs a retain model: give model.retain (evaluate: --retain)"
NO_HOLDOUT = "the benchmark has no holdout set: texts like the forget set's that no model has seen"
NO_WEIGHTS = "needs the model's own likelihoods, which are not at hand"
PARTS = ("probability", "rouge", "truth_ratio")


class LackingError(ValueError):
    """Why a metric has no value, in a few words."""


def wants_likelihoods(benchmark: Benchmark) -> bool:
    """Whether the benchmark declares a metric of this module."""
    protocol = benchmark.protocol
    return bool(protocol.model_utility or protocol.forget_group or protocol.attacks)


def greedy_metrics(benchmark: Benchmark) -> tuple[str, ...]:
    """Which scores of greedy answers the benchmark's metrics read."""
    protocol = benchmark.protocol
    rouge = (protocol.rouge,) if protocol.model_utility or protocol.forget_group or protocol.greedy_means else ()
    return (*rouge, "fluency") if protocol.fluency_group else rouge


def likelihood_examples(benchmark: Benchmark) -> tuple[tuple[Example, ...], frozenset[str]]:
    """Every (question, answer) whose likelihood the benchmark's metrics read, once each, and the ids of those whose
    gradient norm they read."""
    protocol = benchmark.protocol
    found: dict[tuple[str, str], Example] = {}
    if protocol.attacks and benchmark.holdout:
        for example in (*benchmark.members, *benchmark.holdout):
            found.setdefault((example.question, example.answer), example)
    gradients = frozenset(each.id for each in found.values()) if "gradnorm" in protocol.attacks else frozenset()
    for probe in benchmark.probes:
        if probe.group in protocol.model_utility or probe.group == protocol.forget_group:
            for index, answer in enumerate((probe.reference, _correct(probe), *probe.wrong_answers)):
                found.setdefault((probe.prompt, answer), Example(f"{probe.id}/answer{index}", probe.prompt, answer))
    return tuple(found.values()), gradients


def benchmark_metrics(
    benchmark: Benchmark, greedy: dict[str, dict[str, float]], own: Likelihoods | None, retain: Likelihoods | None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Values by metric, None where there is none, and the reason by metric for each of those.

    greedy: by name in `greedy_metrics`, the mean score of the greedy answers by group of probes. own, retain:
    likelihoods over `likelihood_examples`, of the model and of the retain model; None where they are not at hand.
    """
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name, compute in _computations(benchmark, greedy, own, retain, values).items():
        try:
            value = compute()
            if not np.isfinite(value):
                raise LackingError("is not a finite number")
        except ValueError as error:
            values[name], missing[name] = None, str(error)
        else:
            values[name] = float(value)
    whole_first = sorted(values, key=lambda name: "." in name)  # then the parts, group by group
    return {name: values[name] for name in whole_first}, missing


def metric_names(benchmark: Benchmark) -> tuple[str, ...]:
    """The metrics that the benchmark reports beside leak@k."""
    return tuple(_computations(benchmark, {}, None, None, {}))


def _computations(
    benchmark: Benchmark,
    greedy: dict[str, dict[str, float]],
    own: Likelihoods | None,
    retain: Likelihoods | None,
    values: dict[str, float | None],
) -> dict[str, Callable[[], float]]:
    """How each declared metric is computed, in an order in which `values` holds what the later ones read."""
    protocol, forget = benchmark.protocol, benchmark.protocol.forget_group
    found: dict[str, Callable[[], float]] = {}
    groups: dict[str, str] = {forget: "plain"} if forget else {}
    for group, form in (groups | protocol.model_utility).items():
        probes = benchmark.group(group)
        found[f"probability.{group}"] = partial(_probability, probes, own, form)
        found[f"rouge.{group}"] = partial(_greedy, greedy, protocol.rouge, group)
        aggregate = likelihood.forget_truth_ratio if group == forget else likelihood.utility_truth_ratio
        found[f"truth_ratio.{group}"] = partial(_truth_ratio, probes, own, aggregate)
    if protocol.model_utility:
        parts = [f"{name}.{group}" for group in protocol.model_utility for name in PARTS]
        found["model_utility"] = partial(_model_utility, values, parts)
    for name, group in protocol.greedy_means.items():
        found[name] = partial(_greedy, greedy, protocol.rouge, group)
    if protocol.fluency_group:
        found[f"fluency.{protocol.fluency_group}"] = partial(_greedy, greedy, "fluency", protocol.fluency_group)
    if forget:
        probes = benchmark.group(forget)
        found["forget_quality"] = partial(_forget_quality, probes, own, retain, likelihood.forget_quality)
        found["forget_quality_log10"] = partial(_forget_quality, probes, own, retain, likelihood.log10_forget_quality)
        found["extraction_strength"] = partial(_memorized, probes, own, memorization.extraction_strength)
        found["exact_memorization"] = partial(_memorized, probes, own, memorization.exact_memorization)
    for attack in protocol.attacks:
        found[f"mia_{attack}"] = partial(_auc, attack, benchmark, own, retain)
    if "min_k" in protocol.attacks:
        found["privleak"] = partial(_privleak, benchmark, own, retain)
        if protocol.published_auc is not None:
            found["privleak_published"] = partial(_privleak_published, benchmark, own, protocol.published_auc)
    return found


def _probability(probes: list[Probe], own: Likelihoods | None, form: str) -> float:
    correct = _there(own).nll([(probe.prompt, probe.reference) for probe in probes])
    if form == "plain":
        return float(likelihood.probability(correct).mean())
    return float(likelihood.normalised_probability(correct, _wrong_nll(probes, _there(own))).mean())


def _greedy(greedy: dict[str, dict[str, float]], metric: str, group: str) -> float:
    if group not in greedy.get(metric, {}):
        raise LackingError(f"no greedy answer of this group was scored by {metric}")
    return greedy[metric][group]


def _truth_ratio(probes: list[Probe], own: Likelihoods | None, aggregate: Callable[[Floats], float]) -> float:
    return aggregate(_ratios(probes, _there(own)))


def _model_utility(values: dict[str, float | None], parts: list[str]) -> float:
    lacking = [part for part in parts if values[part] is None]
    if lacking:
        raise LackingError(f"needs {', '.join(lacking)}")
    return likelihood.model_utility([value for part in parts if (value := values[part]) is not None])


def _forget_quality(
    probes: list[Probe], own: Likelihoods | None, retain: Likelihoods | None, test: Callable[[Floats, Floats], float]
) -> float:
    return test(_ratios(probes, _there(own)), _ratios(probes, _there(retain, NO_RETAIN)))


def _memorized(probes: list[Probe], own: Likelihoods | None, metric: Callable[[Any, Any], float]) -> float:
    rows = _there(own).of([(probe.prompt, probe.reference) for probe in probes])
    score = metric([row.argmax for row in rows], [row.token_ids for row in rows])
    if np.isnan(score):
        raise LackingError("no answer has a token that fits")
    return score


def _auc(attack: str, benchmark: Benchmark, own: Likelihoods | None, retain: Likelihoods | None) -> float:
    if not benchmark.holdout:
        raise LackingError(NO_HOLDOUT)
    members, others = (_scores(attack, each, _there(own), retain) for each in (benchmark.members, benchmark.holdout))
    return privacy.auc(members, others)


def _privleak(benchmark: Benchmark, own: Likelihoods | None, retain: Likelihoods | None) -> float:
    unlearned = _auc("min_k", benchmark, own, None)
    return privacy.privleak(unlearned, _auc("min_k", benchmark, _there(retain, NO_RETAIN), None))


def _privleak_published(benchmark: Benchmark, own: Likelihoods | None, retain_auc: float) -> float:
    return privacy.privleak(_auc("min_k", benchmark, own, None), retain_auc)


def _scores(attack: str, examples: Sequence[Example], own: Likelihoods, retain: Likelihoods | None) -> Floats:
    pairs = [(each.question, each.answer) for each in examples]
    rows, nll = own.of(pairs), own.nll(pairs)
    if attack == "loss":
        return privacy.loss_score(nll)
    if attack == "zlib":
        return privacy.zlib_score(nll, [answer for _, answer in pairs])
    if attack == "reference":
        return privacy.reference_score(nll, _there(retain, NO_RETAIN).nll(pairs))
    if attack == "min_k":
        return privacy.min_k_score([row.logprobs for row in rows])
    if attack == "min_k_plus_plus":
        means, stds = [row.means for row in rows], [row.stds for row in rows]
        return privacy.min_k_plus_plus_score([row.logprobs for row in rows], means, stds)
    return privacy.gradnorm_score(np.array([row.gradient_norm for row in rows], dtype=np.float64))


def _ratios(probes: list[Probe], likelihoods: Likelihoods) -> Floats:
    correct = likelihoods.nll([(probe.prompt, _correct(probe)) for probe in probes])
    return likelihood.truth_ratio(correct, _wrong_nll(probes, likelihoods))


def _wrong_nll(probes: list[Probe], likelihoods: Likelihoods) -> list[Floats]:
    """[probes, wrong answers]"""
    if not all(probe.wrong_answers for probe in probes):
        raise LackingError("the benchmark gives no wrong answers to these questions")
    return [likelihoods.nll([(probe.prompt, answer) for answer in probe.wrong_answers]) for probe in probes]


def _correct(probe: Probe) -> str:
    """The right answer that wrong ones are compared with: worded as they are."""
    return probe.paraphrased_answer or probe.reference


def _there(likelihoods: Likelihoods | None, reason: str = NO_WEIGHTS) -> Likelihoods:
    if likelihoods is None:
        raise LackingError(reason)
    return likelihoods
