"""Importance weights against the exact leak@k of small known distributions."""

import numpy as np
import pytest

from engine.leak.estimator import leak_at_k
from engine.leak.importance_weights import reweighted_leak

SCORES = np.array([1.0, 0.5, 0.0])
DRAWN, WANTED = np.array([0.2, 0.3, 0.5]), np.array([0.05, 0.25, 0.7])


def samples(prompts=300, n=200, drawn=DRAWN):
    return np.random.default_rng(0).choice(3, size=(prompts, n), p=drawn)


def exact(chances, k):
    return 1 - (1 - chances[0]) ** k * 0.5 - chances[2] ** k * 0.5


def test_equals_the_leak_of_the_wanted_distribution():
    k, drawn = np.array([1, 4, 16]), samples()
    found = reweighted_leak(SCORES[drawn], np.log(DRAWN)[drawn], np.log(WANTED)[drawn], k)
    assert found.leak == pytest.approx([exact(WANTED, each) for each in k], abs=0.02)
    assert found.warning is None
    assert found.mean_weight == pytest.approx(1, abs=0.02)


def test_equal_distributions_give_the_plain_estimate_and_all_samples_count():
    drawn = samples(40, 400)
    found = reweighted_leak(SCORES[drawn], np.log(DRAWN)[drawn], np.log(DRAWN)[drawn], np.array([1, 4]))
    assert found.leak == pytest.approx(leak_at_k(SCORES[drawn], [1, 4]), abs=0.01)
    assert found.effective_samples == pytest.approx(np.full(40, 400))


def test_warns_when_the_samples_miss_what_is_wanted():
    drawn = samples(drawn=np.array([0.0, 0.3, 0.7]))
    log_drawn = np.log([1e-9, 0.3, 0.7])[drawn]
    found = reweighted_leak(SCORES[drawn], log_drawn, np.log([0.5, 0.2, 0.3])[drawn], np.array([1]))
    assert "mean weight is 0.50" in found.warning


def test_warns_when_few_samples_carry_the_weight():
    drawn = samples(n=50)
    rare = np.log([0.98, 0.01, 0.01])[drawn]
    assert "effective samples" in reweighted_leak(SCORES[drawn], np.log(DRAWN)[drawn], rare, np.array([32])).warning


def test_impossible_samples_are_refused():
    with pytest.raises(ValueError, match="finite"):
        reweighted_leak(np.zeros((1, 2)), np.array([[0.0, -np.inf]]), np.zeros((1, 2)), np.array([1]))
