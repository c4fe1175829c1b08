"""The test for excess leakage, against exact enumeration of sign flips and its promised size."""

import itertools

import numpy as np
import pytest

from engine.leak.excess import excess_p_value, worst_prompts


def test_p_value_equals_enumeration_of_all_sign_flips():
    rng = np.random.default_rng(0)
    model, retain = rng.random((8, 4)) ** 0.7, rng.random((8, 4))
    difference = model.mean(axis=1) - retain.mean(axis=1)
    flips = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (flips @ difference >= difference.sum() - 1e-12).mean()
    assert excess_p_value(model, retain, np.array([1]))[0] == pytest.approx(exact, abs=0.015)


def test_equal_models_are_called_leaking_no_more_often_than_stated():
    k = np.array([1, 8])
    rng = np.random.default_rng(1)
    rejected = [
        excess_p_value(rng.random((30, 8)) ** 9, rng.random((30, 8)) ** 9, k, permutations=400) <= 0.05
        for _ in range(300)
    ]
    assert (np.mean(rejected, axis=0) < 0.08).all()


def test_a_model_that_leaks_more_is_found():
    rng = np.random.default_rng(2)
    assert (excess_p_value(rng.random((40, 8)), rng.random((40, 8)) ** 3, np.array([1, 8])) < 0.001).all()


def test_worst_prompts_come_first_with_their_worst_sample():
    model = np.array([[0.0, 0.1], [1.0, 0.2], [0.3, 0.6], [0.5, 0.5]])
    retain = np.array([[0.0, 0.1], [0.0, 0.2], [0.3, 0.5], [0.9, 0.9]])
    worst = worst_prompts(model, retain, k=2)
    assert [(w.index, w.sample) for w in worst] == [(1, 0), (2, 1)]
    assert (worst[0].excess, worst[0].leak, worst[0].retain_leak) == pytest.approx((0.8, 1.0, 0.2))


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match="the same"):
        excess_p_value(np.zeros((2, 2)), np.zeros((3, 2)), np.array([1]))
