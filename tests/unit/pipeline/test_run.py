"""What a run does with a mistake that shows on the way."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from engine.errors import DivergedError, UserError
from engine.pipeline.run import _Run


def fail(error):
    raise error


def test_a_mistake_ends_the_run_before_what_has_not_begun():
    said, goes_on = [], threading.Event()
    run = object.__new__(_Run)
    run.stages = SimpleNamespace(progress=SimpleNamespace(say=said.append))
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(goes_on.wait, 60)
        diverged = pool.submit(fail, DivergedError("loss is nan"))
        wrong = pool.submit(fail, UserError("model.path: no such model"))
        busy = pool.submit(goes_on.wait, 60)
        queued = pool.submit(int)
        with pytest.raises(UserError, match="no such model"):
            run._end_at_a_mistake(pool, [slow, diverged, wrong, busy, queued])
        assert queued.cancelled()
        assert not slow.done()
        goes_on.set()
    assert said == ["model.path: no such model; what is under way is finished first"]
