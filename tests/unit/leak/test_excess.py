"""The prompts to look at."""

import numpy as np
import pytest

from engine.leak.excess import worst_prompts


def test_worst_prompts_come_first_with_their_worst_sample():
    model = np.array([[0.0, 0.1], [1.0, 0.2], [0.3, 0.6], [0.5, 0.5]])
    retain = np.array([[0.0, 0.1], [0.0, 0.2], [0.3, 0.5], [0.9, 0.9]])
    worst = worst_prompts(model, retain, k=2)
    assert [(w.index, w.sample) for w in worst] == [(1, 0), (2, 1)]
    assert (worst[0].excess, worst[0].leak, worst[0].retain_leak) == pytest.approx((0.8, 1.0, 0.2))
