"""Extraction strength and exact memorization agree with a literal reading of their definitions."""

import numpy as np
import pytest

from engine.metrics.memorization import exact_memorization, extraction_strength


def literal_strength(predicted, labels):
    """Try every prefix length k, the shortest first."""
    for k in range(len(labels)):
        if all(predicted[i] == labels[i] for i in range(k, len(labels))):
            return 1 - k / len(labels)
    return 0.0


@pytest.mark.parametrize(
    ("predicted", "strength", "exact"),
    [
        ([1, 2, 3, 4], 1.0, 1.0),
        ([9, 2, 3, 4], 0.75, 0.75),
        ([1, 9, 3, 4], 0.5, 0.75),
        ([1, 2, 3, 9], 0.0, 0.75),
        ([9, 9, 9, 9], 0.0, 0.0),
    ],
)
def test_one_answer_by_hand(predicted, strength, exact):
    for labels in ([1, 2, 3, 4], np.array([1, 2, 3, 4])):
        assert extraction_strength(predicted, labels) == pytest.approx(strength)
        assert exact_memorization(predicted, labels) == pytest.approx(exact)
    assert isinstance(extraction_strength(predicted, labels), float)


def test_several_answers_of_any_length_have_the_mean_of_a_slow_loop():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 12, 300)
    labels = [generator.integers(0, 3, length).tolist() for length in lengths]
    predicted = [generator.integers(0, 3, length).tolist() for length in lengths]
    pairs = list(zip(predicted, labels, strict=True))
    strengths = [literal_strength(*pair) for pair in pairs]
    assert [extraction_strength(*pair) for pair in pairs] == pytest.approx(strengths)
    assert extraction_strength(predicted, labels) == pytest.approx(np.mean(strengths))
    shares = [sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs]
    assert exact_memorization(predicted, labels) == pytest.approx(np.mean(shares))


def test_padding_takes_no_part():
    predicted, labels = np.array([[7, 1, 2, 0, 0]]), np.array([[-100, 1, 2, 3, -100]])
    assert exact_memorization(predicted, labels) == pytest.approx(2 / 3)
    assert extraction_strength(predicted, labels) == pytest.approx(0)
    assert exact_memorization(predicted[0], labels[0]) == pytest.approx(2 / 3)


def test_an_answer_without_tokens_has_no_score_and_is_left_out():
    assert np.isnan(extraction_strength([[]], [[]]))
    assert np.isnan(exact_memorization([5], [-100]))
    assert np.isnan(exact_memorization([], []))
    assert exact_memorization([[], [1, 2]], [[], [1, 9]]) == pytest.approx(0.5)


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="same lengths"):
        exact_memorization([[1, 2]], [[1]])
    with pytest.raises(ValueError, match="same lengths"):
        exact_memorization([1, 2], [1])
