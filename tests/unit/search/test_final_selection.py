"""Who is sampled in full: the winner of all in full, at the cost of few."""

import dataclasses

import numpy as np
import pytest

from engine.leak.estimator import prompt_leak
from engine.search.final_selection import can_win, sample_finalists
from engine.search.space import Rung
from engine.search.trial_report import LeakEstimate, TrialReport

LADDER = (Rung(n=8), Rung(n=32), Rung(n=200))
K = np.array([128])


def report(n, k, leak, low, high, bound, **more):
    return dataclasses.replace(TrialReport.of(LeakEstimate(n, k, leak, low, high, bound, bound)), **more)


def sampled(scores, n):
    """The report on the first n samples of a trial that has these scores in full."""
    first = np.zeros_like(scores)
    first[:, :n] = scores[:, :n]
    bound, full = float(prompt_leak(first, K).mean()), n == scores.shape[1]
    return report(n, min(n, 128), bound, 0.0, 1.0, bound, full=full)


@pytest.mark.parametrize("seed", range(8))
def test_the_winner_is_that_of_sampling_all_in_full(seed):
    rng = np.random.default_rng(seed)
    chances = rng.beta(0.1, 5, size=(20, 36)) * 10 ** rng.uniform(-3, 0, size=(20, 1))
    trials = {f"t{index}": (rng.random((36, 200)) < row[:, None]).astype(float) for index, row in enumerate(chances)}
    calls = []

    def sample(name, rung):
        calls.append((name, rung.n))
        return sampled(trials[name], rung.n)

    reports = sample_finalists({name: sampled(scores, 8) for name, scores in trials.items()}, LADDER, sample)
    leak = {name: float(prompt_leak(scores, K).mean()) for name, scores in trials.items()}
    assert min(each.leak for each in reports.values() if each.full) == min(leak.values())
    assert len(calls) == len(set(calls))
    assert sum(n == 200 for _, n in calls) < 10


def test_a_finalist_that_keeps_too_little_or_fails_leaves_the_field_to_the_next():
    few = {"a": 0.0, "b": 0.1, "c": 0.2}
    reports = {name: report(8, 8, bound, 0.0, 1.0, bound) for name, bound in few.items()}
    end = {
        "a": report(200, 128, 0.0, 0.0, 0.1, 0.0, feasible=False),
        "b": TrialReport.of_failure("out of memory"),
        "c": report(200, 128, 0.3, 0.2, 0.4, 0.3, full=True),
    }
    last = sample_finalists(reports, LADDER[::2], lambda name, rung: end[name])
    assert [name for name, each in last.items() if each.full] == ["c"]


def test_what_was_stopped_while_training_is_out():
    cheap = report(8, 8, 0.0, 0.0, 0.1, 0.0)
    assert not can_win(dataclasses.replace(cheap, epoch=1.0), 0.5)
    assert can_win(cheap, 0.5)
    assert not can_win(cheap, 0.0)  # nothing beats no leak at all
