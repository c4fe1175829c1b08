"""Who is stopped when, what a search remembers over a kill, and when its budget is spent. No Ray cluster."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from engine.search.scheduler import RECORD, Budget, Race, Record, describe
from engine.search.space import Asha
from engine.search.trial import _report, failure
from engine.search.trial_evaluation import Look

GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def report(low, high=1.0, n=8, **more):
    leak = (low + high) / 2
    return _report(Look(n, n, leak, low, high, 0.0, leak, tokens=100), **{"tokens": 100, "utility": 1.0, **more})


@pytest.fixture
def race(tmp_path):
    """A race with its trials by name; `again` is the same one in a new process, after a kill."""

    class Course:
        def __init__(self, asha=None):
            self.race = Race(tmp_path, asha)
            self.added = set()

        def __call__(self, name, seen):
            trial = SimpleNamespace(trial_id=name, config={"beta": 1.0})
            if name not in self.added:
                self.race.on_trial_add(None, trial)
                self.added.add(name)
            return self.race.on_trial_result(None, trial, seen)

    return Course


def test_asha_keeps_the_best_of_those_that_came_so_far_and_remembers_them_over_a_kill(race):
    asha = Asha(first=1, reduction=2)
    course = race(asha)
    assert [course(name, report(value, value, epoch=1.0)) for name, value in (("a", 0.4), ("b", 0.2))] == [GO, GO]
    assert course("c", report(0.5, 0.5, epoch=1.0)) == STOP
    again = race(asha)
    assert again("d", report(0.45, 0.45, epoch=1.0)) == STOP  # worse than the median of .4, .2 and .5
    assert again("e", report(0.1, 0.1, epoch=1.0)) == GO


def test_a_line_that_a_kill_cut_off_is_left_out(race, tmp_path):
    race()("a", report(0.1, 0.3, n=200, full=True))
    with (tmp_path / RECORD).open("a") as record:
        record.write('{"trial": "b", "seen": {"ful')
    assert [row["trial"] for row in Record(tmp_path).rows] == ["a"]


def test_the_budget_counts_what_was_spent_before_a_kill(race, tmp_path):
    course = race()
    course("a", report(0.1))
    course("a", report(0.1, tokens=250))
    course("b", report(0.1, tokens=100))
    assert Record(tmp_path).tokens == 350
    budget = Budget(tmp_path, tokens=400, hours=None)
    assert not budget.stop_all()
    budget("c", report(0.1, tokens=50))
    assert budget.stop_all()
    assert not Budget(tmp_path, tokens=None, hours=1.0).stop_all()
    assert Budget(tmp_path, tokens=None, hours=1e-9).stop_all()


def test_a_look_is_one_line():
    point = {"beta": 0.123456}
    seen = report(0.1, 0.3, utility=0.9)
    assert describe("t", point, seen) == "trial t (beta 0.123): n 8, leak@8 0.200 [0.100, 0.300], utility 0.900"
    bound = report(0.5, n=0, utility=float("nan"), greedy=0.0)
    assert describe("t", point, bound) == "trial t (beta 0.123): leak@0 at least 0.500, greedy 0.000"
    assert describe("t", point, failure("loss is nan\nat step 3")).endswith("failed: loss is nan at step 3")
