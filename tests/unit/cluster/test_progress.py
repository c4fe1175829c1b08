"""Progress: a line a model on a terminal, one line in all elsewhere."""

import re
from unittest.mock import MagicMock

import pytest

from engine.cluster.progress import Progress, Running, clock_time


@pytest.fixture
def progress():
    shown = Progress()
    shown.plan({"target": {"sample": 4.0}, "npo": {"sample": 4.0}, "rmu": {"sample": 4.0}})
    shown.running["train npo"] = Running("npo", "train", 60, 20, "loss 1.5", begun=True)
    shown.running["sample npo T1-p1"] = Running("npo", "sample", 15, 4, begun=True)
    shown.running["train rmu"] = Running("rmu", "train", 60)  # asked for, not begun
    shown.finish("target")
    return shown


def test_one_line_says_what_every_model_does(progress):
    assert progress._line() == "npo train 20/60; 1 done, 1 wait"


def test_a_table_has_a_line_a_model_in_the_order_of_the_plan(progress):
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=100).print(progress._table())
    lines = [re.sub(r"[^\w/.:]+", " ", line).strip() for line in out.getvalue().splitlines()]
    assert lines[0] == "target done"
    assert re.fullmatch(r"npo train 20/60 and 1 more +loss 1.5", lines[1])
    assert lines[2] == "rmu waits"
    assert lines[3].startswith("0:0")


def test_many_models_at_once_stay_one_line():
    shown = Progress()
    for number in range(9):
        shown.subjects[f"m{number}"] = ""
        shown.running[f"train m{number}"] = Running(f"m{number}", "train", 10, begun=True)
    assert shown._line().count("train") == 6
    assert "3 more at work" in shown._line()


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (90.0, "1:30"), (7200.0, "2:00:00")])
def test_times_read_as_on_a_clock(seconds, said):
    assert clock_time(seconds) == said


def test_a_line_says_brackets_as_they_are(capsys):
    Progress().say("store /data/[old]/a: done")
    assert "store /data/[old]/a: done" in capsys.readouterr().err


def test_two_may_wait_for_the_same_stage():
    shown = Progress(quiet=True)
    shown.board = MagicMock()  # no cluster
    with shown.task("sample", "retain tolerance", 4):
        with shown.task("sample", "retain tolerance", 4):
            assert len(shown.running) == 2
        assert len(shown.running) == 1
    assert not shown.running


def test_what_failed_is_not_called_done(progress):
    progress.finish("npo", "failed")
    progress.running.clear()
    assert progress._line() == "1 done, 1 failed, 1 wait"
