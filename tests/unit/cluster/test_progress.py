"""Progress says how long the rest will take."""

import pytest

from engine.cluster.progress import _left


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "said"),
    [
        (0, 8, 30.0, ""),
        (8, 8, 30.0, ""),
        (2, 8, 30.0, ", about 1:30 left"),
        (1, 4, 0.4, ", about 0:01 left"),
        (1, 101, 72.0, ", about 2:00:00 left"),
    ],
)
def test_the_time_left_is_at_the_speed_so_far(done, total, elapsed, said):
    assert _left(done, total, elapsed) == said


def test_a_line_says_brackets_as_they_are(capsys):
    from engine.cluster.progress import Progress

    Progress().say("store /data/[old]/a: done")
    assert "store /data/[old]/a: done" in capsys.readouterr().err
