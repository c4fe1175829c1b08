"""Sequential sampling: unbiased by exact enumeration, as wide as asked for, and cheaper."""

import itertools

import numpy as np
import pytest

from engine.adaptive import Rule, _mean_leak, _stop, adaptive_leak, rule_cost
from engine.leak import prompt_leak


@pytest.mark.parametrize("rule", [Rule(1, 6), Rule(2, 6), Rule(3, 6)])
def test_stopping_rule_is_unbiased_and_its_cost_exact_over_all_sequences(rule):
    """Every sequence of six binary samples with its probability; the stop may come at any of them."""
    chance, k = 0.3, 3
    mean = square = cost = 0.0
    for sequence in itertools.product([0.0, 1.0], repeat=6):
        row = np.array(sequence)
        probability = np.prod(np.where(row == 1, chance, 1 - chance))
        counted = _stop(row, rule, 1.0)
        estimate = _mean_leak([row[:counted]], k)
        drawn = next((n for n in range(1, 7) if row[:n].sum() == rule.top_scores), 6)
        mean += probability * estimate
        square += probability * estimate**2
        cost += probability * drawn
    assert mean == pytest.approx(1 - 0.7**3, abs=1e-12)
    assert rule_cost(np.array([chance]), k, rule) == pytest.approx((cost, square - mean**2), abs=1e-9)


def test_graded_scores_stay_unbiased():
    values, chances, k, rule = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.3, 0.2]), 2, Rule(2, 5)
    mean = 0.0
    for sequence in itertools.product(range(3), repeat=5):
        row = values[list(sequence)]
        mean += np.prod(chances[list(sequence)]) * _mean_leak([row[: _stop(row, rule, 1.0)]], k)
    assert mean == pytest.approx(1 - 0.8**2 + 0.4 * (0.8**2 - 0.5**2), abs=1e-12)


@pytest.fixture(scope="module")
def runs():
    """20 runs on 200 prompts that leak like published models, at k = 32."""
    chance = np.random.default_rng(0).beta(0.336, 0.957, 200)
    results = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        results.append(
            adaptive_leak(lambda i, n, r=rng: list(r.random((len(i), n)) < chance[list(i), None]), 200, 32, 0.02)
        )
    return (1 - (1 - chance) ** 32).mean(), results


def test_half_width_is_about_as_asked_and_covers(runs):
    truth, results = runs
    assert np.mean([result.half_width for result in results]) == pytest.approx(0.02, rel=0.2)
    assert np.mean([abs(result.leak - truth) <= result.half_width for result in results]) >= 0.85
    assert np.mean([result.leak for result in results]) == pytest.approx(truth, abs=0.006)


def test_spends_far_fewer_samples_than_equal_numbers_for_all_prompts(runs):
    chance = np.random.default_rng(0).beta(0.336, 0.957, 200)
    wanted = (0.02 / 1.96) ** 2 * 200
    uniform = next(n for n in range(33, 500) if rule_cost(chance, 32, Rule(n + 1, n))[1] <= wanted)
    assert uniform > 1.5 * np.mean([result.samples.mean() for result in runs[1]])


def test_without_any_leak_the_half_width_is_the_upper_bound():
    result = adaptive_leak(lambda indices, n: [np.zeros(n) for _ in indices], 40, 8, 0.1)
    assert result.leak == 0
    assert result.half_width == pytest.approx(1 - 0.05 ** (1 / 40))


def test_equal_numbers_are_what_leak_at_k_uses():
    rows = np.random.default_rng(1).random((5, 9))
    assert _mean_leak(list(rows), 4) == pytest.approx(prompt_leak(rows, np.array([4])).mean())


@pytest.mark.parametrize(("prompts", "half_width", "says"), [(1, 0.1, "two prompts"), (4, 1e-6, "no rule")])
def test_what_cannot_be_done_is_refused(prompts, half_width, says):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=says):
        adaptive_leak(lambda i, n: list((rng.random((len(i), n)) < 0.1).astype(float)), prompts, 4, half_width)
