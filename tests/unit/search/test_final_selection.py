"""Who is sampled in full: the winner of all in full, at the cost of few."""

import numpy as np
import pytest

from engine.leak.estimator import prompt_leak
from engine.search.final_selection import can_win, finals
from engine.search.space import Rung
from engine.search.trial import _report, failure
from engine.search.trial_evaluation import Look

LADDER = (Rung(n=8), Rung(n=32), Rung(n=200))
K = np.array([128])


def seen(scores, n, **more):
    """The report of a look at the first n samples of a trial whose full look has these scores."""
    first = np.zeros_like(scores)
    first[:, :n] = scores[:, :n]
    bound, full = float(prompt_leak(first, K).mean()), n == scores.shape[1]
    return _report(Look(n, min(n, 128), bound, 0.0, 1.0, bound, bound), full=full, **more)


@pytest.mark.parametrize("seed", range(8))
def test_the_winner_is_that_of_sampling_all_in_full(seed):
    rng = np.random.default_rng(seed)
    chances = rng.beta(0.1, 5, size=(20, 36)) * 10 ** rng.uniform(-3, 0, size=(20, 1))
    trials = {f"t{index}": (rng.random((36, 200)) < row[:, None]).astype(float) for index, row in enumerate(chances)}
    asked = []

    def look(name, rung):
        asked.append((name, rung.n))
        return seen(trials[name], rung.n)

    found = finals({name: seen(scores, 8) for name, scores in trials.items()}, LADDER, look)
    leak = {name: float(prompt_leak(scores, K).mean()) for name, scores in trials.items()}
    assert min(each["leak"] for each in found.values() if each["full"]) == min(leak.values())
    assert len(asked) == len(set(asked))
    assert sum(n == 200 for _, n in asked) < 10


def test_a_finalist_that_keeps_too_little_or_fails_leaves_the_field_to_the_next():
    few = {"a": 0.0, "b": 0.1, "c": 0.2}
    reports = {name: _report(Look(8, 8, bound, 0.0, 1.0, bound, bound)) for name, bound in few.items()}
    end = {
        "a": _report(Look(200, 128, 0.0, 0.0, 0.1, 0.0, 0.0), feasible=False),
        "b": failure("out of memory"),
        "c": _report(Look(200, 128, 0.3, 0.2, 0.4, 0.3, 0.3), full=True),
    }
    found = finals(reports, LADDER[::2], lambda name, rung: end[name])
    assert [name for name, each in found.items() if each["full"]] == ["c"]


def test_what_was_stopped_while_training_is_out():
    assert not can_win(_report(Look(8, 8, 0.0, 0.0, 0.1, 0.0, 0.0), epoch=1.0), 0.5)
    assert can_win(_report(Look(8, 8, 0.0, 0.0, 0.1, 0.0, 0.0)), 0.5)
    assert not can_win(_report(Look(8, 8, 0.0, 0.0, 0.1, 0.0, 0.0)), 0.0)  # nothing beats no leak at all
