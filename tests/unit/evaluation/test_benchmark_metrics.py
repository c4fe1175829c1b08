"""A benchmark's own metrics, from likelihoods made by hand: the right answers are compared, and gaps are explained."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.base import Benchmark, Example, Probe, Protocol
from engine.evaluation.benchmark_metrics import benchmark_metrics, greedy_metrics, likelihood_examples
from engine.pipeline.unlearning_requests import restricted_benchmark, split_requests
from engine.stages.likelihood import Likelihoods, TokenLikelihoods, as_table


class Small(Benchmark):
    """Two forget questions with paraphrases, two general ones without, and a holdout set."""

    name = "small"

    def __init__(self, **protocol):
        self.forget = [Example(f"f{i}", f"forget {i}?", f"right {i}") for i in range(2)]
        self.holdout = [Example(f"h{i}", f"holdout {i}?", f"unseen {i}") for i in range(2)]
        self.probes = [
            Probe(each.id, each.question, each.answer, "forget", paraphrased_answer=f"{each.answer}, again",
                  wrong_answers=(f"wrong {each.id}", f"false {each.id}"))
            for each in self.forget
        ] + [
            Probe(f"g{i}", f"general {i}?", f"known {i}", "general", wrong_answers=(f"no {i}", f"never {i}"))
            for i in range(2)
        ]  # fmt: skip
        everything = {"model_utility": {"general": "normalised"}, "forget_group": "forget"}
        self.protocol = Protocol(
            core_metric="rouge_l_recall",
            metrics=("rouge_l_recall",),
            leak_group="forget",
            utility_group="general",
            **everything | protocol,
        )


ALL_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm")


def row(probabilities, right=None, norm=1.0):
    """What a model says that gives its tokens these probabilities; `right`: where its argmax is right."""
    logprobs = [math.log(p) for p in probabilities]
    tokens = list(range(len(logprobs)))
    argmax = [token if good else -1 for token, good in zip(tokens, right or [True] * len(tokens), strict=True)]
    size = len(tokens)
    return TokenLikelihoods(-sum(logprobs) / size, tokens, argmax, logprobs, [-1.0] * size, [1.0] * size, norm)


def likelihoods(benchmark, of):
    """`of(answer)` gives the row of each (question, answer) that the benchmark reads."""
    examples, _ = likelihood_examples(benchmark)
    index = {(each.question, each.answer): row for row, each in enumerate(examples)}
    return Likelihoods(index, as_table([of(each.answer) for each in examples]))


def knowing(answer):
    kinds = {"right": 0.5, "wrong": 0.2, "false": 0.8, "known": 0.6, "no": 0.1, "never": 0.1, "unseen": 0.05}
    p = kinds[answer.split()[0]]
    return row([p, p], right=[False, True], norm=1 - p)


GREEDY = {"rouge_l_recall": {"forget": 0.3, "general": 0.7}, "fluency": {"forget": 0.9}}


def measured(benchmark, own="knowing", retain="knowing"):
    given = [likelihoods(benchmark, knowing) if each == "knowing" else each for each in (own, retain)]
    return benchmark_metrics(benchmark, GREEDY, *given)


def test_every_pair_is_asked_for_once_and_gradients_of_members_and_holdout_alone():
    benchmark = Small(attacks=ALL_ATTACKS)
    examples, gradients = likelihood_examples(benchmark)
    pairs = [(each.question, each.answer) for each in examples]
    assert len(set(pairs)) == len(pairs) == 2 * (1 + 1 + 2) + 2 * (1 + 2) + 2
    assert len({each.id for each in examples}) == len(examples)
    assert gradients == {"f0", "f1", "h0", "h1"}
    assert likelihood_examples(Small(attacks=("loss",)))[1] == frozenset()


def test_values_by_hand():
    values, missing = measured(Small(attacks=ALL_ATTACKS))
    assert missing == {
        "privleak": "privleak is not defined for a retain model that tells the sets apart wholly (AUC 1)"
    }
    assert values["probability.forget"] == pytest.approx(0.5)
    assert values["truth_ratio.forget"] == pytest.approx(0.4 / 0.5)  # the wrong answers' geometric mean is .4
    assert values["probability.general"] == pytest.approx(0.6 / 0.8)
    assert values["truth_ratio.general"] == pytest.approx(1 - 0.1 / 0.6)
    assert values["rouge.forget"] == 0.3
    assert values["model_utility"] == pytest.approx(stats.hmean([0.75, 0.7, 1 - 1 / 6]))
    assert values["forget_quality"] == 1
    assert values["extraction_strength"] == pytest.approx(0.5)
    assert values["exact_memorization"] == pytest.approx(0.5)
    known = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm")
    assert [values[f"mia_{attack}"] for attack in known] == [1] * 5  # members are likelier and pull less
    assert values["mia_reference"] == 0.5  # a model is its own reference


def test_the_paraphrase_is_compared_where_there_is_one():
    benchmark = Small()
    own = likelihoods(benchmark, lambda answer: row([0.9]) if "again" in answer else knowing(answer))
    values, _ = measured(benchmark, own)
    assert values["truth_ratio.forget"] == pytest.approx(0.4 / 0.9)
    assert values["probability.forget"] == pytest.approx(0.5)


def test_forget_quality_and_privleak_compare_with_the_retain_model():
    benchmark = Small(attacks=("min_k",))
    unaware = likelihoods(benchmark, lambda answer: row([0.3]) if answer[0] in "ru" else knowing(answer))
    values, _ = measured(benchmark, retain=unaware)
    ratios, retain_ratios = [0.8, 0.8], [0.4 / 0.3, 0.4 / 0.3]
    assert values["forget_quality"] == pytest.approx(stats.ks_2samp(ratios, retain_ratios).pvalue)
    assert values["forget_quality_log10"] == pytest.approx(math.log10(1 / 3))
    assert values["privleak"] == pytest.approx(100 * (0.5 - 1) / 0.5)  # AUC 1 against chance


def test_without_a_retain_model_the_reason_stands_in_place_of_the_value():
    values, missing = measured(Small(attacks=ALL_ATTACKS), retain=None)
    assert set(missing) == {"forget_quality", "forget_quality_log10", "mia_reference", "privleak"}
    assert all(values[name] is None and "retain model" in missing[name] for name in missing)


def test_a_benchmark_without_a_holdout_set_says_so():
    benchmark = Small(attacks=("loss", "min_k"))
    benchmark.holdout = []
    values, missing = measured(benchmark)
    assert {name for name, reason in missing.items() if "holdout" in reason} == {"mia_loss", "mia_min_k", "privleak"}
    assert values["forget_quality"] == 1


def test_what_a_lacking_part_takes_with_it_is_named():
    values, missing = benchmark_metrics(
        Small(), {"rouge_l_recall": {"forget": 0.3}}, likelihoods(Small(), knowing), None
    )
    assert missing["model_utility"] == "needs rouge.general"
    assert values["model_utility"] is None


def test_without_likelihoods_only_rouge_is_known():
    values, missing = measured(Small(), own=None, retain=None)
    assert {name for name, value in values.items() if value is not None} == {"rouge.forget", "rouge.general"}
    assert set(values) == set(missing) | {"rouge.forget", "rouge.general"}


def test_a_value_that_is_no_number_is_a_gap():
    benchmark = Small()
    broken = likelihoods(benchmark, lambda answer: TokenLikelihoods(np.nan, [], [], [], [], [], None))
    values, missing = measured(benchmark, broken)
    assert values["probability.forget"] is None
    assert "finite" in missing["probability.forget"]
    assert "none of them NaN" in missing["forget_quality"]


def test_after_the_first_of_two_requests_only_its_questions_count():
    whole = Small(attacks=("loss",))
    first = restricted_benchmark(whole, split_requests(whole, [1, 1]), 0)
    unlearned = likelihoods(whole, lambda answer: row([0.01]) if answer == "right 0" else knowing(answer))
    values, _ = measured(first, unlearned)
    assert values["probability.forget"] == pytest.approx(0.01)
    assert values["mia_loss"] == 0  # now less likely than what was never seen
    assert values["probability.general"] == measured(whole)[0]["probability.general"]
    assert measured(whole, unlearned)[0]["mia_loss"] == 0.5


def test_fluency_is_reported_where_it_is_declared():
    assert greedy_metrics(Small()) == ("rouge_l_recall",)
    assert greedy_metrics(Small(fluency_group="forget")) == ("rouge_l_recall", "fluency")
    assert "fluency.forget" not in measured(Small())[0]
    assert measured(Small(fluency_group="forget"))[0]["fluency.forget"] == 0.9


def test_a_benchmark_that_declares_nothing_has_no_metrics(fictional):
    assert benchmark_metrics(fictional, {}, None, None) == ({}, {})
    assert greedy_metrics(fictional) == ()
