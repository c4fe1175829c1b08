"""A run that is finished again leaves its folder as it is; new results are drawn anew."""

import dataclasses

import pytest

from engine.pipeline import finish
from engine.reporting.results import ModelResults, read_results
from engine.store.store import Store
from tests.made import make_run


@pytest.fixture
def results(tmp_path):
    return read_results(make_run(tmp_path, "made", {("target", "target"): [["ash", "no"]]}, ["ash"], k=(1, 2)))


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, by name."""
    calls = []

    def writer(name, file):
        def write(results, folder, *_):
            calls.append(name)
            if not (folder / file).is_dir():
                (folder / file).write_text(str(results.models[0].utility))
            return folder / file

        return write

    for name, file in (("figures", "leak_at_k.png"), ("scores", "scores"), ("report", "report.html")):
        monkeypatch.setattr(finish, f"write_{name}", writer(name, file))
    return calls


def test_the_same_results_are_drawn_once_and_others_again(tmp_path, results, drawn):
    store = Store(tmp_path)
    first = finish.finish_run(results, store)
    again = finish.finish_run(dataclasses.replace(results, seconds=results.seconds + 1), store)
    assert drawn == ["figures", "scores", "report"]
    assert (again.picture, again.report) == (first.picture, first.report)
    others = [dataclasses.replace(model, utility=0.123) for model in results.models]
    finish.finish_run(dataclasses.replace(results, models=ModelResults(others)), store)
    assert len(drawn) == 6
    assert first.report.read_text() == "0.123"


def test_what_is_missing_is_drawn_again(tmp_path, results, drawn):
    store = Store(tmp_path)
    finish.finish_run(results, store).report.unlink()
    finish.finish_run(results, store)
    assert len(drawn) == 6
