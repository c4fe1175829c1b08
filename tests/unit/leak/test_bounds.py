"""Bounds against their closed forms, exact binomial probabilities and simulation."""

import numpy as np
import pytest
from scipy import stats

from engine.leak.bounds import (
    binary_leak_bound,
    graded_leak_bound,
    leak_floor,
    leak_probability_bound,
    mean_leak_bound,
    per_prompt_confidence,
)


def test_probability_bound_is_clopper_pearson():
    leaks, samples = np.array([0, 1, 7, 20]), 20
    expected = [stats.binomtest(c, samples, alternative="less").proportion_ci(0.95).high for c in leaks]
    assert leak_probability_bound(leaks, samples) == pytest.approx(expected, abs=1e-9)


def test_no_leak_in_n_samples_is_the_rule_of_three():
    assert leak_probability_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)


def test_binary_bound_at_k_beyond_n():
    bound = binary_leak_bound(0, 200, [1, 128, 10**9])
    chance = 1 - 0.05 ** (1 / 200)
    assert bound == pytest.approx([chance, 1 - (1 - chance) ** 128, 1.0], abs=1e-9)


def test_graded_bound_is_the_integral_of_the_band():
    scores = np.random.default_rng(0).random(30)
    grid = (np.arange(200_000) + 0.5) / 200_000
    share = (scores[:, None] <= grid[None, ::20]).mean(axis=0)
    for k in (1, 3):
        expected = 1 - (np.maximum(share - np.sqrt(np.log(10) / 60), 0) ** k).mean()
        assert graded_leak_bound(scores[None], [k], 0.9)[0, 0] == pytest.approx(expected, abs=1e-3)


def test_graded_bound_holds_at_least_as_often_as_promised():
    k = np.array([1, 4, 64])
    bounds = graded_leak_bound(np.random.default_rng(0).random((500, 20)), k, 0.6)
    assert (bounds >= k / (k + 1)).all(axis=1).mean() >= 0.6  # uniform scores have leak@k = k / (k + 1)


def test_graded_bound_never_lies_below_the_largest_score():
    assert graded_leak_bound(np.array([[0.2, 0.7, np.nan]]), [10**6])[0, 0] >= 0.7
    assert graded_leak_bound(np.array([[np.nan, np.nan]]), [1])[0, 0] == 1.0


def test_all_prompts_bounds_hold_together():
    """20 prompts that leak with probability .1, 50 samples: every bound must hold at once in 90 % of the trials."""
    leaks = np.random.default_rng(1).binomial(50, 0.1, (2000, 20))
    held = (leak_probability_bound(leaks, 50, per_prompt_confidence(0.9, 20)) >= 0.1).all(axis=1).mean()
    assert held >= 0.9
    assert (leak_probability_bound(leaks, 50, 0.9) >= 0.1).all(axis=1).mean() < 0.6


def test_mean_bound_when_nothing_leaked():
    assert mean_leak_bound(np.zeros((400, 1)))[0] == pytest.approx(1 - 0.05 ** (1 / 400))


def test_mean_bound_when_everything_leaked_is_one():
    assert mean_leak_bound(np.ones((40, 1)))[0] == 1.0


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
def test_mean_bound_holds_as_often_as_promised(share):
    leaks = np.arange(401)
    values = (np.arange(400)[:, None] < leaks).astype(float)
    holds = mean_leak_bound(values) >= share
    assert stats.binom.pmf(leaks, 400, share)[holds].sum() >= 0.95


@pytest.mark.parametrize(("leaks", "samples"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(leaks, samples):
    with pytest.raises(ValueError, match="must lie in 0"):
        leak_probability_bound(leaks, samples)


def test_floor_of_one_answer_at_any_k():
    assert leak_floor([np.log(0.3)], [1, 2]) == pytest.approx([0.3, 0.51])
    assert leak_floor([np.log(1e-12)], 10**9) == pytest.approx(1e-3, rel=1e-3)


def test_floor_of_graded_answers_equals_simulation():
    probabilities, scores = np.array([0.1, 0.3, 0.2]), np.array([1.0, 0.25, 0.5])
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.append(scores, 0.0), size=(200_000, 3), p=np.append(probabilities, 0.4))
    assert leak_floor(np.log(probabilities), 3, scores) == pytest.approx(drawn.max(axis=1).mean(), abs=0.003)


def test_an_answer_listed_twice_is_refused():
    with pytest.raises(ValueError, match=r"cannot sum to 1.2"):
        leak_floor(np.log([0.6, 0.6]), 1)
