"""leak@k against enumeration, exact fractions and published numbers."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from engine.leak.curve import leak_curve
from engine.leak.estimator import leak_at_k, order_weights

SCORES = np.array([[0.0, 0.2, 0.9, 0.2, 0.5], [1.0, 0.0, 0.0, 1.0, 0.0]])


def enumerated(row, k):
    """The mean over all k-subsets of their largest score: the definition, by brute force."""
    return np.mean([max(subset) for subset in itertools.combinations(row, k)])


def exact(row, k):
    """The estimator in exact rational arithmetic."""
    n = len(row)
    ordered = sorted(Fraction(float(score)) for score in row)
    return float(sum(comb(j - 1, k - 1) * ordered[j - 1] for j in range(k, n + 1)) / comb(n, k))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_equals_the_mean_over_all_subsets(k):
    expected = np.mean([enumerated(row, k) for row in SCORES])
    assert float(leak_at_k(SCORES, k)) == pytest.approx(expected, abs=1e-12)


def test_binary_scores_give_pass_at_k():
    n, leaking = 200, 7
    row = np.r_[np.ones(leaking), np.zeros(n - leaking)]
    for k in (1, 8, 128, 193, 194, 200):
        expected = 1 - Fraction(comb(n - leaking, k), comb(n, k))
        assert float(leak_at_k([row], k)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(("n", "ks"), [(1000, (1, 2, 17, 128, 500, 999, 1000)), (137, range(1, 138))])
def test_equals_exact_rational_arithmetic(n, ks):
    row = np.random.default_rng(n).random(n) ** 8
    got = leak_at_k([row], list(ks))
    assert np.abs(got - [exact(row, k) for k in ks]).max() < 1e-12


def test_stable_at_a_hundred_thousand_samples():
    n = 100_000
    row = np.arange(1, n + 1) / n  # the expected largest rank of k of 1..n is k (n + 1) / (k + 1)
    k = np.array([1, 2, 128, 5000, n])
    assert np.abs(leak_at_k([row], k) - k * (n + 1) / (k + 1) / n).max() < 1e-12


def test_weights_sum_to_one_at_every_k():
    assert np.abs(order_weights(200, np.arange(1, 201)).sum(axis=1) - 1).max() < 1e-13


def test_result_has_the_shape_of_k():
    assert leak_at_k(SCORES, 2).shape == ()
    assert leak_at_k(SCORES, [1, 2, 5]).shape == (3,)


@pytest.mark.parametrize(
    ("scores", "k", "says"),
    [
        (SCORES, 6, "k must be in 1..5"),
        (SCORES, 0, "k must be in 1..5"),
        (SCORES, 1.5, "integer"),
        (SCORES, [], "integer"),
        ([[0.5, np.nan]], 1, "NaN"),
        ([[0.5, 1.1]], 1, r"found 1.1 at prompt 0, sample 1"),
        ([[0.5, -0.1]], 1, "found -0.1"),
        ([[0.5, np.inf]], 1, "found inf"),
        ([], 1, "dimension"),
        ([[]], 1, "empty"),
        ([0.5, 0.1], 1, "dimension"),
    ],
)
def test_bad_input_is_refused(scores, k, says):
    with pytest.raises(ValueError, match=says):
        leak_at_k(scores, k)


def test_curve_agrees_with_the_estimator_and_lies_in_its_interval():
    scores = np.random.default_rng(1).random((30, 40)) ** 4
    curve = leak_curve(scores)
    assert curve.k.tolist() == [1, 2, 4, 8, 16, 32]
    assert curve.leak == pytest.approx(leak_at_k(scores, curve.k))
    assert curve.mean == pytest.approx(scores.mean())
    assert (curve.low < curve.leak).all()
    assert (curve.leak < curve.high).all()
    assert (curve.prompts, curve.samples, curve.failed, curve.excluded) == (30, 40, 0, 0)
    assert curve.excess is None


def test_the_order_of_k_changes_no_number():
    scores = np.random.default_rng(5).random((12, 16)) ** 4
    given = leak_curve(scores, k=[16, 1, 4], retain_scores=scores / 2, clusters=[1, 2, 3] * 4)
    rising = leak_curve(scores, k=[1, 4, 16], retain_scores=scores / 2, clusters=[1, 2, 3] * 4)
    for name in ("k", "leak", "low", "high", "excess", "excess_low", "excess_high", "excess_p_value"):
        assert getattr(given, name)[[1, 2, 0]].tolist() == getattr(rising, name).tolist()


def test_failed_samples_are_excluded_and_counted():
    curve = leak_curve([[1.0, None, 0.0], [0.0, 0.0, float("nan")]], k=[1, 2])
    assert curve.leak.tolist() == [0.25, 0.5]
    assert (curve.failed, curve.samples, curve.excluded) == (2, 3, 0)


def test_prompt_with_too_few_valid_samples_is_left_out_at_every_k():
    curve = leak_curve([[1.0, None, 0.0], [0.0, None, None]], k=[1, 2])
    assert curve.leak.tolist() == [0.5, 1.0]
    assert (curve.prompts, curve.excluded, curve.failed) == (1, 1, 3)


def test_ragged_rows_equal_enumeration():
    rows = [[0.1, 0.9, 0.4], [0.3, 0.2, 0.8, 0.0, 0.6]]
    curve = leak_curve(rows, k=[1, 2, 3])
    assert curve.leak == pytest.approx([np.mean([enumerated(row, k) for row in rows]) for k in (1, 2, 3)])


@pytest.mark.parametrize(
    ("scores", "k", "says"),
    [
        ([[0.0, 1.0], [0.0]], [2], "k must be in 1..1"),
        ([[None, None]], None, "every score failed"),
        ([[0.5, None]], [2], "no prompt has more than 1 valid"),
        ([[0.5], []], None, "empty"),
        ([[0.5], [[0.5]]], None, "prompt 1 must be a flat list"),
    ],
)
def test_curve_refuses_bad_input(scores, k, says):
    with pytest.raises(ValueError, match=says):
        leak_curve(scores, k)


def test_excess_is_the_difference_on_the_same_prompts():
    rng = np.random.default_rng(2)
    model, retain = rng.random((50, 16)), rng.random((50, 16)) ** 3
    curve = leak_curve(model, [1, 4], retain_scores=retain)
    assert curve.excess == pytest.approx(leak_at_k(model, [1, 4]) - leak_at_k(retain, [1, 4]))
    assert (curve.excess_low < curve.excess).all()
    assert (curve.excess < curve.excess_high).all()


def test_excess_of_a_model_over_itself_is_zero_and_its_interval_holds_zero():
    scores = np.random.default_rng(3).random((50, 16))
    curve = leak_curve(scores, [1, 4], retain_scores=scores)
    assert curve.excess.tolist() == [0.0, 0.0]
    assert (curve.excess_low < 0).all()
    assert (curve.excess_high > 0).all()


def test_pairing_narrows_the_excess_interval():
    hard = np.random.default_rng(4).random((200, 1))
    draws = np.random.default_rng(5).random((2, 200, 16))
    model, retain = (draws[0] < hard).astype(float), (draws[1] < hard).astype(float)
    paired = leak_curve(model, [1], retain_scores=retain)
    broken = leak_curve(model, [1], retain_scores=retain[np.random.default_rng(6).permutation(200)])
    assert np.ptp([paired.excess_low, paired.excess_high]) < 0.6 * np.ptp([broken.excess_low, broken.excess_high])


def test_retain_with_other_prompts_is_refused():
    with pytest.raises(ValueError, match="2 prompts, retain has 1"):
        leak_curve(SCORES, retain_scores=SCORES[:1])


def test_intervals_draw_nothing_at_random():
    scores = np.random.default_rng(7).random((20, 8))
    assert leak_curve(scores, seed=1).high.tolist() == leak_curve(scores, seed=2).high.tolist()


def test_prompts_of_few_authors_say_less_than_as_many_prompts():
    author = np.random.default_rng(8).random((6, 1))
    scores = (np.random.default_rng(9).random((72, 40)) < np.repeat(author, 12, axis=0)).astype(float)
    labels = [f"author{index // 12}" for index in range(72)]
    by_author, ignored = leak_curve(scores, [1, 8], clusters=labels), leak_curve(scores, [1, 8])
    assert by_author.leak.tolist() == ignored.leak.tolist()
    assert (np.subtract(by_author.high, by_author.low) > 1.5 * np.subtract(ignored.high, ignored.low)).all()
    assert (by_author.clusters, ignored.clusters, by_author.prompts) == (6, 72, 72)


def test_a_left_out_prompt_leaves_its_cluster_too():
    rows = [[1.0, 0.0], [0.0, 0.0], [1.0, None]]
    assert leak_curve(rows, [2], clusters=["a", "a", "b"]).clusters == 1


def test_p_value_and_interval_of_the_excess_agree():
    rng = np.random.default_rng(10)
    model, retain = rng.random((60, 16)) ** 2.8, rng.random((60, 16)) ** 3
    curve = leak_curve(model, retain_scores=retain, clusters=[index // 10 for index in range(60)])
    assert ((curve.excess_p_value <= 0.05) == ((curve.excess_low > 0) | (curve.excess_high < 0))).all()


def test_for_these_very_prompts_only_the_samples_count():
    chances = np.random.default_rng(11).beta(0.3, 0.9, (200, 1))
    scores = (np.random.default_rng(12).random((200, 64)) < chances).astype(float)
    these, like_these = leak_curve(scores, [1], inference="prompts"), leak_curve(scores, [1])
    assert these.leak.tolist() == like_these.leak.tolist()
    assert (these.high - these.low)[0] < 0.3 * (like_these.high - like_these.low)[0]
    assert (these.inference, like_these.inference) == ("prompts", "population")


def test_unknown_inference_and_missing_labels_are_refused():
    with pytest.raises(ValueError, match="population, prompts"):
        leak_curve(SCORES, inference="authors")
    with pytest.raises(ValueError, match="1 cluster labels for 2 prompts"):
        leak_curve(SCORES, clusters=["a"])


def test_as_dict_is_plain_and_has_excess_only_with_retain():
    alone = leak_curve(SCORES, [1, 2]).as_dict()
    assert alone["k"] == [1, 2]
    assert "excess" not in alone
    assert len(leak_curve(SCORES, [1, 2], retain_scores=SCORES).as_dict()["excess_low"]) == 2
