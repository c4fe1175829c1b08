"""Probability, truth ratio, forget quality and model utility are what TOFU's formulas say, by hand or literally."""

import math

import numpy as np
import pytest
from scipy import stats

from engine.metrics.likelihood import (
    forget_quality,
    forget_truth_ratio,
    log10_forget_quality,
    model_utility,
    normalised_probability,
    probability,
    truth_ratio,
    utility_truth_ratio,
)


def random_nlls(items=40, wrong=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.gamma(2.0, 1.0, items), generator.gamma(2.0, 1.0, (items, wrong))


def test_probability_is_the_geometric_mean_of_the_tokens_probabilities():
    tokens = [0.5, 0.25, 0.125]
    nll = -sum(math.log(p) for p in tokens) / 3
    assert probability([nll]) == pytest.approx([0.25])


def test_normalised_probability_is_the_share_among_all_answers():
    assert normalised_probability([-math.log(0.6)], [[-math.log(0.1), -math.log(0.5)]]) == pytest.approx([0.5])


def test_normalised_probability_tells_answers_apart_that_are_all_hopeless():
    assert normalised_probability([800.0], [[800.0, 800.0 + math.log(2)]]) == pytest.approx([0.4])
    assert normalised_probability([800.0], [[1.0]]) == pytest.approx([0.0])


def test_truth_ratio_by_hand():
    # wrong answers .2 and .8: geometric mean .4; right answer .5
    assert truth_ratio([-math.log(0.5)], [[-math.log(0.2), -math.log(0.8)]]) == pytest.approx([0.8])


def test_truth_ratio_equals_the_formula_as_it_is_printed():
    correct, wrong = random_nlls()
    literal = [
        math.prod(math.exp(-each) for each in row) ** (1 / len(row)) / math.exp(-right)
        for right, row in zip(correct, wrong, strict=True)
    ]
    assert truth_ratio(correct, wrong) == pytest.approx(literal)


def test_truth_ratio_wants_wrong_answers_for_each_item():
    with pytest.raises(ValueError, match=r"wrong_nll \[items, wrong\]; found \(2,\), \(3, 5\)"):
        truth_ratio(np.zeros(2), np.zeros((3, 5)))


def test_truth_ratio_of_a_forget_set_is_best_at_one_and_of_others_at_zero():
    assert forget_truth_ratio([0.5, 2.0, 1.0, 0.0]) == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert utility_truth_ratio([0.25, 2.0, 0.0]) == pytest.approx((0.75 + 0 + 1) / 3)
    assert forget_truth_ratio([np.inf]) == utility_truth_ratio([np.inf]) == 0


def test_forget_quality_is_scipys_test_and_blind_to_the_ratios_direction():
    ratios, retain = (np.random.default_rng(seed).lognormal(seed / 4, 1, 60) for seed in (0, 1))
    assert forget_quality(ratios, retain) == pytest.approx(stats.ks_2samp(ratios, retain).pvalue)
    assert forget_quality(1 / ratios, 1 / retain) == pytest.approx(forget_quality(ratios, retain))


def test_forget_quality_of_two_by_two_apart_is_one_third():
    # of the 6 orders of two and two, 2 keep them as far apart as this
    assert forget_quality([1, 2], [3, 4]) == pytest.approx(1 / 3)


def test_forget_quality_reaches_from_one_to_the_published_floor():
    ratios = np.linspace(0.1, 2, 400)
    assert forget_quality(ratios, ratios) == 1
    assert forget_quality(ratios, ratios + 9) == pytest.approx(2 / math.comb(800, 400))  # 1.06e-239 in published tables
    assert log10_forget_quality(ratios, ratios + 9) == pytest.approx(-238.98, abs=0.01)
    assert log10_forget_quality(np.zeros(2000), np.ones(2000)) == pytest.approx(-323.3, abs=0.1)


@pytest.mark.parametrize("bad", [[], [0.5, float("nan")]])
def test_forget_quality_refuses_what_is_no_ratio(bad):
    with pytest.raises(ValueError, match="truth ratio"):
        forget_quality(bad, [1.0])


def test_model_utility_of_a_published_log():
    """OpenUnlearning's evaluation of its retain90 Llama-3.2-1B-Instruct: nine parts and their utility."""
    retain = [0.8802840007841587, 0.8264372396779979, 0.5138097597002513]
    real_authors = [0.3915799226316357, 0.8145, 0.5022027051450156]
    world_facts = [0.4279515925645054, 0.8022792022792024, 0.6156096615954564]
    assert model_utility(retain + real_authors + world_facts) == pytest.approx(0.5892923390686856, rel=1e-12)


def test_model_utility_is_the_harmonic_mean():
    assert model_utility([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert model_utility([0.9, 0.0]) == 0


@pytest.mark.parametrize("bad", [[], [0.5, -0.1], [float("nan")]])
def test_model_utility_refuses_what_has_no_harmonic_mean(bad):
    with pytest.raises(ValueError, match="harmonic"):
        model_utility(bad)
