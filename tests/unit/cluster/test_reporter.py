"""Whether a training that takes long steps hears that it is to stop."""

import types

import pytest
import ray

from engine.cluster import reporter
from engine.cluster.reporter import Reporter


@pytest.fixture
def board(monkeypatch):
    """A board whose answers are objects here: `ready` says how long each takes to come, in seconds."""
    answers, ready = [], []

    def put(*_):
        answers.append(ready.pop(0))
        return answers[-1]

    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []) if refs[0]["after"] <= timeout else ([], refs))
    monkeypatch.setattr(ray, "get", lambda ref: ref["stop"])
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 0.0)
    return types.SimpleNamespace(put=types.SimpleNamespace(remote=put), ready=ready)


def test_the_answer_to_the_report_just_made_is_heard(board):
    board.ready += [{"stop": True, "after": 0.003}]
    told = Reporter(board, "target train")
    told(1)
    assert told.stopping()


def test_an_answer_that_came_during_the_next_step_is_not_lost(board):
    late = {"stop": True, "after": 1.0}
    board.ready += [late, {"stop": False, "after": 1.0}]
    told = Reporter(board, "target train")
    told(1)
    assert not told.stopping()
    late["after"] = 0.0
    told(2)
    assert told.stopping()


def test_a_training_that_is_not_to_stop_goes_on(board):
    board.ready += [{"stop": False, "after": 0.0}] * 3
    told = Reporter(board, "target train")
    assert not told.stopping()
    for step in range(3):
        told(step)
        assert not told.stopping()
