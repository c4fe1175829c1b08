"""Who is stopped when, what a search remembers over a kill, and when its budget is spent. No Ray cluster."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from engine.search.scheduler import Budget, SearchScheduler
from engine.search.space import Asha
from engine.search.trial_log import LOG_FILE, TrialLog
from engine.search.trial_report import LeakEstimate, TrialReport, report_line

GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def report(low, high=1.0, n=8, **more):
    leak = (low + high) / 2
    estimate = LeakEstimate(n, n, leak, low, high, 0.0, leak)
    return dataclasses.replace(TrialReport.of(estimate), **{"tokens": 100, "utility": 1.0, **more})


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler that takes the reports of trials by name; a second one is that of a new process, after a kill."""

    class Course:
        def __init__(self, asha=None):
            self.scheduler = SearchScheduler(tmp_path, asha)
            self.added = set()

        def __call__(self, name, report):
            trial = SimpleNamespace(trial_id=name, config={"beta": 1.0})
            if name not in self.added:
                self.scheduler.on_trial_add(None, trial)
                self.added.add(name)
            return self.scheduler.on_trial_result(None, trial, report.as_dict() | {"training_iteration": 1})

    return Course


def test_asha_keeps_the_best_of_those_that_came_so_far_and_remembers_them_over_a_kill(scheduler):
    asha = Asha(first=1, reduction=2)
    course = scheduler(asha)
    assert [course(name, report(value, value, epoch=1.0)) for name, value in (("a", 0.4), ("b", 0.2))] == [GO, GO]
    assert course("c", report(0.5, 0.5, epoch=1.0)) == STOP
    again = scheduler(asha)
    assert again("d", report(0.45, 0.45, epoch=1.0)) == STOP  # worse than the median of .4, .2 and .5
    assert again("e", report(0.1, 0.1, epoch=1.0)) == GO


def test_a_line_that_a_kill_cut_off_is_left_out(scheduler, tmp_path):
    scheduler()("a", report(0.1, 0.3, n=200, full=True))
    with (tmp_path / LOG_FILE).open("a") as record:
        record.write('{"trial": "b", "seen": {"ful')
    assert [row.trial for row in TrialLog(tmp_path).rows] == ["a"]


def test_the_budget_counts_what_was_spent_before_a_kill(scheduler, tmp_path):
    course = scheduler()
    course("a", report(0.1))
    course("a", report(0.1, tokens=250))
    course("b", report(0.1, tokens=100))
    assert TrialLog(tmp_path).tokens == 350
    budget = Budget(tmp_path, tokens=400, hours=None)
    assert not budget.stop_all()
    budget("c", report(0.1, tokens=50).as_dict())
    assert budget.stop_all()
    assert not Budget(tmp_path, tokens=None, hours=1.0).stop_all()
    assert Budget(tmp_path, tokens=None, hours=1e-9).stop_all()


def test_a_report_is_one_line():
    point = {"beta": 0.123456}
    line = "trial t (beta 0.123): n 8, leak@8 0.200 [0.100, 0.300], utility 0.900"
    assert report_line("t", point, report(0.1, 0.3, utility=0.9)) == line
    bound = report(0.5, n=0, utility=float("nan"), greedy=0.0)
    assert report_line("t", point, bound) == "trial t (beta 0.123): leak@0 at least 0.500, greedy 0.000"
    failed = TrialReport.of_failure("loss is nan\nat step 3")
    assert report_line("t", point, failed).endswith("failed: loss is nan at step 3")


def test_a_report_comes_back_from_the_log_as_it_was(tmp_path):
    log = TrialLog(tmp_path)
    log.add("a", {"beta": 0.5}, report(0.1, kept={"utility": 0.9}, epoch=1.5))
    log.add("b", {"beta": 0.7}, TrialReport.of_failure("loss is nan"))
    first, second = TrialLog(tmp_path).rows
    assert (first.trial, first.values, first.report.kept) == ("a", {"beta": 0.5}, {"utility": 0.9})
    assert (first.report.epoch, first.report.low, first.report.tokens) == (1.5, 0.1, 100)
    assert math.isnan(first.report.excess)
    assert second.report.failed == "loss is nan"
    assert math.isnan(second.report.leak)
