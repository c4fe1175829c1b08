"""Intervals and p-values against exact ones, brute force, their promised coverage and each other."""

import numpy as np
import pytest
from scipy import stats

from engine.leak.batched import ends_and_p_values, ends_of_means
from engine.leak.clusters import clusters_of
from engine.leak.curve import leak_curve
from engine.leak.intervals import (
    _degrees,
    contrast,
    hoeffding_bound,
    population_difference,
    population_mean,
    sampling_difference,
    sampling_mean,
)


def alone(prompts):
    return clusters_of(None, prompts)


def authors(count, prompts_each):
    return clusters_of(np.repeat(np.arange(count), prompts_each).tolist(), count * prompts_each)


@pytest.mark.parametrize(("successes", "prompts"), [(0, 40), (40, 40)])
def test_where_all_prompts_score_the_same_the_interval_is_clopper_pearson(successes, prompts):
    values = (np.arange(prompts) < successes).astype(float)[:, None]
    low, high = population_mean(values, alone(prompts)).ends(0.05)
    exact = stats.binomtest(successes, prompts).proportion_ci(0.95, "exact")
    assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(("prompts", "share"), [(40, 0.5), (100, 0.05), (400, 0.02), (400, 0.9)])
def test_interval_of_binary_values_covers_about_as_often_as_it_says(prompts, share):
    """Every possible number of leaking prompts, weighted by its exact binomial probability."""
    leaking = np.arange(prompts + 1)
    chance = stats.binom.pmf(leaking, prompts, share)
    low, high = population_mean((np.arange(prompts)[:, None] < leaking).astype(float), alone(prompts)).ends(0.05)
    assert 0.93 <= chance @ ((low <= share) & (share <= high)) <= 0.98


@pytest.mark.parametrize(("spread", "count"), [(0, 6), (1, 6), (0, 20), (1, 20), (2, 20)])
def test_interval_by_author_covers_where_the_one_that_ignores_authors_does_not(spread, count):
    """Authors whose prompts' logits share an effect of that sd; 400 studies side by side."""
    rng = np.random.default_rng(0)
    effects = rng.standard_normal((count, 400)) * spread
    logits = np.repeat(effects, 12, axis=0) + rng.standard_normal((count * 12, 400))
    nodes = np.hypot(spread, 1) * np.linspace(-8, 8, 4001)
    truth = np.average(1 / (1 + np.exp(-nodes)), weights=stats.norm.pdf(nodes, scale=np.hypot(spread, 1)))
    covered = {}
    for name, clusters in (("by author", authors(count, 12)), ("ignored", alone(count * 12))):
        low, high = population_mean(1 / (1 + np.exp(-logits)), clusters).ends(0.05)
        covered[name] = np.mean((low <= truth) & (truth <= high))
    assert 0.92 <= covered["by author"] <= 0.985
    assert spread == 0 or covered["ignored"] < 0.85


def test_ends_of_a_curve_that_never_falls_do_not_fall_and_are_ends_of_one_of_its_columns():
    """Five authors that leak all, one with a prompt that does not quite: alone, leak@2 is less sure than leak@1."""
    leaks = np.stack([np.full(72, 0.99), np.full(72, 1.0)], axis=1)
    leaks[:, 0] += np.repeat(np.linspace(-0.002, 0.002, 6), 12)
    leaks[0, 1] = 0.998
    low, high = population_mean(leaks, authors(6, 12)).ends(0.05)
    assert low[1] < 0.9 < 0.98 < low[0]
    rising_low, rising_high = population_mean(leaks, authors(6, 12), curve=2).ends(0.05)
    assert rising_low.tolist() == [low[0], low[0]]
    assert rising_high.tolist() == [high.min(), high[1]]


def test_curves_side_by_side_have_the_ends_of_each_alone():
    rng = np.random.default_rng(3)
    curves = np.sort(rng.random((3, 30, 4)) ** 3, axis=2)
    together = population_mean(np.concatenate(list(curves), axis=1), authors(6, 5), curve=4).ends(0.05)
    alone_each = [population_mean(each, authors(6, 5), curve=4).ends(0.05) for each in curves]
    for side in (0, 1):
        assert together[side] == pytest.approx(np.concatenate([each[side] for each in alone_each]))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_prompts_that_all_score_the_same_still_get_a_wide_interval(value):
    low, high = population_mean(np.full((20, 1), value), alone(20)).ends(0.05)
    assert high[0] - low[0] > 0.1
    assert low[0] <= value <= high[0]


def test_one_cluster_says_next_to_nothing_of_others():
    low, high = population_mean(np.zeros((30, 1)), authors(1, 30)).ends(0.05)
    assert (low[0], high[0]) == (0.0, pytest.approx(0.975))


def test_authors_without_a_single_leak_allow_what_their_prompts_allow():
    low, high = population_mean(np.zeros((72, 1)), authors(6, 12)).ends(0.05)
    assert (low[0], high[0]) == (0.0, pytest.approx(1 - 0.025 ** (1 / 72)))


def test_a_clear_excess_over_a_model_that_never_leaks_is_found_with_six_authors():
    rng = np.random.default_rng(11)
    model = np.repeat(rng.beta(3, 9, (6, 1)), 12, axis=0) * rng.random((72, 1))
    difference = population_difference(model, np.zeros((72, 1)), authors(6, 12))
    assert difference.p_value(0.95)[0] < 0.05
    assert difference.ends(0.05)[0][0] > 0


def test_prompts_in_any_order_give_the_same_interval():
    rng = np.random.default_rng(1)
    values, labels = rng.random((60, 3)), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    found = population_mean(values, clusters_of(labels.tolist(), 60)).ends(0.05)
    shuffled = population_mean(values[order], clusters_of(labels[order].tolist(), 60)).ends(0.05)
    np.testing.assert_allclose(found, shuffled, rtol=0, atol=1e-12)


def test_the_error_of_equal_clusters_is_that_of_their_means():
    values = np.random.default_rng(2).random((60, 1))
    mean = population_mean(values, authors(12, 5))
    assert mean.error[0] == pytest.approx(stats.sem(values.reshape(12, 5).mean(axis=1)))
    assert mean.degrees == pytest.approx(11)


@pytest.mark.parametrize("sizes", [(3, 5, 9, 1, 20), (1, 1), (4, 4, 4), (50, *(1,) * 30)])
def test_degrees_of_freedom_are_satterthwaites_of_the_whole_matrix(sizes):
    weight = np.array(sizes) / sum(sizes)
    scale = 1 / np.sqrt(1 - weight)
    matrix = scale[:, None] * (np.diag(weight) - np.outer(weight, weight)) * scale
    assert _degrees(weight) == pytest.approx(np.trace(matrix) ** 2 / np.trace(matrix @ matrix))


def test_the_interval_of_many_prompts_is_the_normal_one():
    values = np.random.default_rng(3).random((20_000, 1))
    low, high = population_mean(values, alone(20_000)).ends(0.05)
    half = 1.96 * stats.sem(values[:, 0])
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01 * half)


def test_hoeffding_bound_is_the_exact_binomial_one_where_nothing_leaked():
    assert hoeffding_bound(np.zeros(1), 400, 0.05)[0] == pytest.approx(1 - 0.05 ** (1 / 400))


def paired(seed, columns=40, shift=0.15):
    """leak of a model and of a retain model, from a clear excess to none."""
    rng = np.random.default_rng(seed)
    hard = rng.random((48, 1)) ** 3
    other = np.clip(hard + 0.2 * rng.standard_normal((48, columns)), 0, 1)
    return np.clip(hard + 0.2 * rng.standard_normal((48, columns)) + shift * np.linspace(0, 1, columns), 0, 1), other


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("clusters", [alone(48), authors(6, 8), clusters_of([0] * 20 + list(range(1, 29)), 48)])
def test_p_value_and_interval_never_contradict_each_other(confidence, clusters):
    for seed in range(5):
        difference = population_difference(*paired(seed), clusters)
        low, high = difference.ends(1 - confidence)
        significant = difference.p_value(confidence) <= 1 - confidence
        assert (significant == ((low > 0) | (high < 0))).all()
        assert significant.any()
        assert not significant.all()


def test_p_value_of_a_large_symmetric_difference_is_students():
    rng = np.random.default_rng(4)
    first, second = (0.5 + 0.1 * rng.standard_normal((2, 5000, 1))).clip(0, 1)
    found = population_difference(first, second, alone(5000)).p_value(0.95)
    assert found[0] == pytest.approx(stats.ttest_rel(first[:, 0], second[:, 0]).pvalue, abs=0.01)


def test_equal_models_are_called_different_no_more_often_than_stated():
    rng = np.random.default_rng(5)
    hard = np.repeat(rng.random((10, 400)) ** 2, 8, axis=0)
    first, second = (rng.random((2, 80, 400)) < hard).astype(float)
    assert (population_difference(first, second, authors(10, 8)).p_value(0.95) <= 0.05).mean() < 0.08


def test_the_excess_covers_where_one_model_leaks_far_more():
    """Skewed and unequal: the paired t interval covers in less than nine of ten."""
    rng = np.random.default_rng(6)
    first = np.repeat(rng.beta(0.15, 2, (10, 1000)), 8, axis=0)
    second = np.repeat(rng.beta(0.02, 2, (10, 1000)), 8, axis=0)
    truth = 0.15 / 2.15 - 0.02 / 2.02
    difference = population_difference(first, second, authors(10, 8))
    low, high = difference.ends(0.05)
    t_half = stats.t.ppf(0.975, 9) * difference.error
    assert np.mean(np.abs(difference.value - truth) <= t_half) < 0.9
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) < 1


def test_a_model_beside_itself_differs_by_nothing():
    values = np.random.default_rng(7).random((50, 2))
    difference = population_difference(values, values, alone(50))
    low, high = difference.ends(0.05)
    assert (low < 0).all()
    assert (high > 0).all()
    assert difference.p_value(0.95).tolist() == [1.0, 1.0]


def test_two_models_that_never_leak_differ_by_no_more_than_each_may_leak():
    nothing = np.zeros((40, 1))
    low, high = population_difference(nothing, nothing, alone(40)).ends(0.05)
    bound = population_mean(nothing, alone(40)).ends(0.05)[1][0]
    assert (low[0], high[0]) == pytest.approx((-bound, bound))


def test_a_contrast_of_excesses_over_one_retain_model_is_the_difference_of_the_models():
    (one, other), (retain, _) = paired(8, 3), paired(9, 3)
    clusters = authors(6, 8)
    direct = population_difference(one, other, clusters)
    nested = contrast(
        population_difference(one, retain, clusters),
        population_difference(other, retain, clusters),
        one - retain,
        other - retain,
        clusters,
    )
    assert nested.value == pytest.approx(direct.value)
    assert nested.error == pytest.approx(direct.error)
    assert nested.reach == (-2.0, 2.0)


def test_for_these_very_prompts_the_interval_is_of_the_samples_alone():
    """Prompts that differ much, 200 samples of each: the truth is the mean of their own chances."""
    rng = np.random.default_rng(10)
    chances = rng.beta(0.3, 0.9, (72, 1))
    leaks = rng.binomial(200, chances, (72, 500)) / 200
    low, high = sampling_mean(leaks, leaks * (1 - leaks) / 199, np.full(500, 200)).ends(0.05)
    assert 0.93 <= np.mean((low <= chances.mean()) & (chances.mean() <= high)) <= 0.98
    population_low, population_high = population_mean(leaks, alone(72)).ends(0.05)
    assert (high - low).max() < 0.2 * (population_high - population_low).min()


def test_without_a_variance_the_interval_assumes_nothing():
    values = np.full((40, 1), 0.3)
    low, high = sampling_mean(values, np.full((40, 1), np.nan), np.array([3])).ends(0.05)
    assert high[0] == pytest.approx(hoeffding_bound(values[0], 120, 0.025)[0])
    assert low[0] == pytest.approx(1 - hoeffding_bound(1 - values[0], 120, 0.025)[0])


def test_no_leak_in_many_samples_says_more_than_in_few():
    """40 prompts without a leak in 25 samples each: a thousand independent samples at k = 1, 80 groups at k = 10."""
    nothing = np.zeros((40, 2))
    _, high = sampling_mean(nothing, nothing, 25 // np.array([1, 10])).ends(0.05)
    assert high == pytest.approx([1 - 0.025 ** (1 / 1000), 1 - 0.025 ** (1 / 80)])


def test_errors_of_independent_models_add_for_these_very_prompts():
    first = sampling_mean(np.full((10, 1), 0.5), np.full((10, 1), 0.004), np.array([50]))
    second = sampling_mean(np.full((10, 1), 0.4), np.full((10, 1), 0.003), np.array([50]))
    difference = sampling_difference(first, second)
    assert difference.error[0] == pytest.approx(np.sqrt(0.007 / 10))
    low, high = difference.ends(0.05)
    assert low[0] <= 0.1 - 1.95 * difference.error[0]
    assert high[0] >= 0.1 + 1.95 * difference.error[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_p_value_is_the_smallest_share_of_misses_whose_interval_leaves_zero_out(seed):
    """At every k of a curve, whose ends depend on each other."""
    rng = np.random.default_rng(seed)
    model, retain = rng.beta(0.3, 2, (40, 64)), rng.beta(0.2, 3, (40, 64))
    if seed % 2:
        model, retain = (model > 0.7).astype(float), (retain > 0.8).astype(float)

    def curve(confidence):
        clusters = np.repeat(np.arange(10), 4)
        return leak_curve(model, confidence=confidence, retain_scores=retain, clusters=clusters)

    p = curve(0.95).excess_p_value
    for column, each in enumerate(p):
        wider, narrower = curve(1 - 0.99 * each), curve(1 - min(1.01 * each, 1 - 1e-9))
        assert wider.excess_low[column] <= 0 <= wider.excess_high[column]
        assert narrower.excess_low[column] > 0 or narrower.excess_high[column] < 0


def test_many_at_once_are_as_each_alone():
    """Differences of several kinds: clusters, columns of a curve, these prompts, a single cluster."""
    rng = np.random.default_rng(5)
    differences = []
    for clusters, columns in (
        (authors(6, 4), 3),
        (authors(6, 4), 3),
        (alone(24), 3),
        (authors(6, 4), 1),
        (authors(1, 24), 2),
    ):
        first, second = (np.sort(rng.random((24, columns)), axis=1) * scale for scale in (1.0, 0.6))
        differences.append(population_difference(first, second, clusters, columns))
        means = [sampling_mean(each, each * 0.01, np.arange(columns, 0, -1) * 4, columns) for each in (first, second)]
        differences.append(sampling_difference(*means))
    for each, together in zip(differences, ends_and_p_values(differences, 0.95), strict=True):
        np.testing.assert_array_equal(together, (*each.ends(0.05), each.p_value(0.95)))
    means = [each.first for each in differences]
    for mean, together in zip(means, ends_of_means(means, 0.05), strict=True):
        np.testing.assert_array_equal(together, mean.ends(0.05))
    assert ends_and_p_values([], 0.95) == ends_of_means([], 0.05) == []
