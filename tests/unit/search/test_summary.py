"""What a search says of its trials: winner, Pareto front, greedy beside leak@k, and why there is no winner."""

import dataclasses
import json
import math

import pytest

from engine.config.experiment import parse_experiment
from engine.search.figures import write_figures
from engine.search.result import Search, Trial
from engine.search.space import Space
from engine.search.summary import as_json, by_greedy, greedy_sentence, print_search, rank_correlation, reason_for_none
from engine.search.trial_evaluation import Setting
from engine.search.trial_report import LeakEstimate, TrialReport

SPACE = {"method": "npo", "parameters": {"beta": {"loguniform": [0.1, 10.0]}, "train.steps": {"choice": [1, 2]}}}


def trial(name, leak, utility, greedy=0.0, full=True, **more):
    n, k = (200, 64) if full else (8, 8)
    estimate = LeakEstimate(n, k, leak, max(0.0, leak - 0.1), min(1.0, leak + 0.1), 0.0, leak)
    known = {"utility": utility, "greedy": greedy, "full": full, "feasible": utility >= 0.9}
    report = dataclasses.replace(TrialReport.of(estimate), **known, **more)
    return Trial(name, {"beta": 1.0, "train.steps": 2}, report)


def failed(cause):
    return Trial("x", {"beta": 2.0, "train.steps": 1}, TrialReport.of_failure(cause))


@pytest.fixture
def search(fictional, tmp_path):
    def search(*trials):
        experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "e.yaml").with_protocol(fictional.protocol)
        space = Space.model_validate(SPACE)
        setting = Setting(experiment, space, str(tmp_path), "forget", "exact_fact", least={"utility": 0.9})
        return Search(list(trials), setting, tmp_path, 1.0)

    return search


def test_the_winner_leaks_least_among_those_that_keep_enough_and_were_sampled_in_full(search):
    found = search(trial("a", 0.3, 0.95), trial("b", 0.2, 0.91), trial("c", 0.1, 0.5), trial("d", 0.0, 1.0, full=False))
    assert found.best.id == "b"


def test_the_front_holds_what_no_other_beats_in_both(search):
    found = search(
        trial("a", 0.3, 0.95), trial("b", 0.2, 0.91), trial("c", 0.1, 0.5), trial("d", 0.25, 0.9), failed("nan")
    )
    assert [each.id for each in found.front] == ["c", "b", "a"]


def test_greedy_and_leak_are_compared_over_trials_sampled_in_full_alone(search):
    found = search(
        trial("a", 0.3, 1.0, greedy=0.0),
        trial("b", 0.2, 1.0, greedy=0.1),
        trial("c", 0.1, 1.0, greedy=0.2),
        trial("d", 0.9, 1.0, greedy=0.9, full=False),
    )
    assert rank_correlation(found) == (pytest.approx(-1.0), 3)
    assert [each.id for each in by_greedy(found)] == ["a"]
    assert math.isnan(rank_correlation(search(trial("a", 0.3, 1.0), trial("b", 0.2, 1.0)))[0])


def test_trials_that_greedy_cannot_tell_apart_are_all_named(search):
    found = search(trial("a", 0.3, 1.0), trial("b", 0.0, 1.0), trial("c", 0.1, 1.0, greedy=0.5))
    assert "2 trials are best by greedy (0.000), and leak 0.000 to 0.300" in greedy_sentence(found)


def test_a_search_without_a_winner_says_why(search):
    assert reason_for_none(search(failed("loss is nan"), failed("other"))) == (
        "all 2 trials failed, the first: loss is nan"
    )
    assert "no trial of 2 kept utility 0.900" in reason_for_none(search(trial("a", 0.1, 0.2), failed("loss is nan")))


def test_what_was_not_measured_is_null_and_a_failure_keeps_its_cause(search, capsys):
    found = search(trial("a", 0.3, 0.95), failed("loss is nan at step 3"))
    document = json.loads(json.dumps(as_json(found, None, {}), allow_nan=False))
    assert document["greedy_rank_correlation"] is None
    assert document["trials"][1]["failed"] == "loss is nan at step 3"
    assert document["trials"][1]["leak"] is None
    print_search(found, {"decided": {"leak": [0.3, 0.2, 0.4]}, "held out": {"leak": [0.5, 0.3, 0.6]}})
    said = capsys.readouterr().out
    assert "failed: loss is nan at step 3" in said
    assert "the half held out: leak 0.500 [0.300, 0.600]" in said


def test_pictures_are_drawn_whatever_was_measured(search):
    found = search(trial("a", 0.3, 0.95), trial("b", 0.2, 0.91, greedy=0.1), trial("c", 0.1, 0.5), failed("nan"))
    assert [path.name for path in write_figures(found)] == ["pareto.png", "parallel.png", "greedy.png"]
    assert write_figures(search(failed("nan"))) == []
