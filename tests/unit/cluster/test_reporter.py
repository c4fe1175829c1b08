"""Whether a training that takes long steps hears that it is to stop."""

import pickle
import types
from concurrent.futures import Future

import pytest

from engine.cluster import reporter
from engine.cluster.reporter import Reporter


@pytest.fixture
def board(monkeypatch):
    """A board that answers each report by the next of `answers`, futures that a test may fulfil later."""
    answers = []
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 0.0)
    put = types.SimpleNamespace(remote=lambda *_: types.SimpleNamespace(future=lambda: answers.pop(0)))
    return types.SimpleNamespace(put=put, answers=answers)


def answered(stop):
    future = Future()
    future.set_result(stop)
    return future


def test_the_answer_to_the_report_just_made_is_heard(board):
    board.answers.append(answered(True))
    told = Reporter(board, "target train")
    told(1)
    assert told.stopping()


def test_an_answer_that_came_during_the_next_step_is_not_lost(board):
    late = Future()
    board.answers += [late, Future()]
    told = Reporter(board, "target train")
    told(1)
    assert not told.stopping()
    late.set_result(True)
    told(2)
    assert told.stopping()


def test_a_training_that_is_not_to_stop_goes_on(board):
    board.answers += [answered(False) for _ in range(3)]
    told = Reporter(board, "target train")
    assert not told.stopping()
    for step in range(3):
        told(step)
        assert not told.stopping()


def test_a_reporter_that_awaits_an_answer_can_be_sent_to_a_worker():
    board = types.SimpleNamespace(put=types.SimpleNamespace(remote=lambda *_: types.SimpleNamespace(future=Future)))
    told = Reporter(board, "target train", "1")
    told(1)
    told.board = "board"
    sent = pickle.loads(pickle.dumps(told))
    assert (sent.board, sent.label, sent.part, sent.answer) == ("board", "target train", "1", None)


def test_work_goes_on_where_the_board_is_gone(board):
    lost = Future()
    lost.set_exception(RuntimeError("the board's node died"))
    board.answers += [lost, answered(True)]
    told = Reporter(board, "target train")
    told(1)
    assert not told.stopping()
    told(2)
    assert told.stopping()
