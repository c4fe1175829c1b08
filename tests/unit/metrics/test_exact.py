"""A fact counts as said when its words stand in the response, whole and in order."""

import numpy as np
import pytest

from engine.metrics.exact import exact_fact


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("She was born in Lisbon, in 1971.", "Lisbon"),
        ("born in NEW\n  york!", "New York"),
        ("the 'Silver Harp' award", "silver harp"),
        ("Lisbon", "Lisbon."),
        ("a well-known man", "well known"),
        ("Cafe\u0301 Royal", "Café Royal"),
        ("Große Straße", "GROSSE STRASSE"),
        ("__Lisbon__", "Lisbon"),
    ],
)
def test_said(response, fact):
    assert exact_fact([response], [fact]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("it starts at nine", "art"),
        ("born in 1971", "197"),
        ("York New", "New York"),
        ("New old York", "New York"),
        ("", "Lisbon"),
        ("Lisbo n", "Lisbon"),
    ],
)
def test_not_said(response, fact):
    assert exact_fact([response], [fact]).tolist() == [0.0]


def test_scores_come_in_the_order_of_the_pairs():
    found = exact_fact(["a b", "c", "a b", "b"], ["b", "b", "a", "b"])
    assert found.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert found.dtype == np.float64


@pytest.mark.parametrize("fact", ["", " ", "...!"])
def test_a_fact_without_a_word_is_refused(fact):
    with pytest.raises(ValueError, match="no word"):
        exact_fact(["anything"], [fact])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="1 candidates and 2 references"):
        exact_fact(["a"], ["a", "b"])
