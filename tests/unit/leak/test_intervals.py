"""Intervals against exact ones, scipy's and their promised coverage."""

import numpy as np
import pytest
from scipy import stats

from engine.leak.intervals import mean_interval


@pytest.mark.parametrize(("successes", "prompts"), [(0, 40), (40, 40)])
def test_bounded_interval_is_clopper_pearson_where_all_prompts_score_the_same(successes, prompts):
    values = (np.arange(prompts) < successes).astype(float)[:, None]
    low, high = mean_interval(values, resamples=40_000)
    exact = stats.binomtest(successes, prompts).proportion_ci(0.95, "exact")
    assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), abs=0.002)


@pytest.mark.parametrize(("prompts", "share"), [(40, 0.5), (100, 0.05), (400, 0.02), (400, 0.9)])
def test_bounded_interval_of_binary_values_covers_about_as_often_as_it_says(prompts, share):
    """Every possible number of leaking prompts, weighted by its exact binomial probability."""
    leaking = np.arange(prompts + 1)
    chance = stats.binom.pmf(leaking, prompts, share)
    covered = 0.0
    for count in leaking[chance > 1e-4]:
        low, high = mean_interval((np.arange(prompts) < count).astype(float)[:, None], resamples=2_000)
        covered += chance[count] * (low[0] <= share <= high[0])
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize(("interval", "name"), [("percentile", "percentile"), ("bca", "BCa")])
def test_bootstrap_intervals_agree_with_scipy(interval, name):
    values = np.random.default_rng(0).random((60, 1)) ** 6
    low, high = mean_interval(values, 0.9, interval=interval, resamples=40_000)
    theirs = stats.bootstrap(
        (values[:, 0],), np.mean, method=name, confidence_level=0.9, n_resamples=40_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.002)


@pytest.mark.parametrize("interval", ["bounded", "percentile", "bca"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_prompts_that_all_score_the_same_still_get_a_wide_interval(interval, value):
    low, high = mean_interval(np.full((20, 1), value), interval=interval)
    assert high[0] - low[0] > 0.1
    assert low[0] <= value <= high[0]


def test_unknown_interval_is_refused():
    with pytest.raises(ValueError, match="percentile"):
        mean_interval(np.zeros((3, 1)), interval="normal")
