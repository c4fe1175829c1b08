"""A formula that was changed, and says so, is another stage; one that never was is known as without versions."""

import dataclasses

import pytest

from benchmarks.base import Example
from engine.config.sections import TrainSection
from engine.metrics import METRICS, known_by
from engine.models.source import ModelSource
from engine.robustness.attacks.prune import Prune
from engine.robustness.weights import WeightsJob
from engine.train.job import TrainJob
from engine.train.launch import Training
from methods import METHODS

MODEL, EXAMPLES = ModelSource("m", "m"), (Example("a", "b", "c"),)


@pytest.mark.parametrize("method", [{"name": "npo"}, {"name": "sam", "base": {"name": "npo"}}])
def test_a_training_by_another_formula_is_another_one(monkeypatch, method):
    job = Training(TrainJob(MODEL, method, TrainSection(), EXAMPLES))
    before = job.inputs()
    assert not any("version" in key for key in before if key != "version")
    monkeypatch.setattr(METHODS["npo"], "version", 2)
    assert job.inputs() == before | {"method_versions": {"npo": 2}}


def test_a_metrics_and_an_attacks_too(monkeypatch):
    job = WeightsJob("prune", Prune(), MODEL)
    before = job.inputs()
    monkeypatch.setattr(Prune, "version", 3)
    assert job.inputs() == before | {"attack_version": 3}
    monkeypatch.setitem(METRICS, "exact_fact", dataclasses.replace(METRICS["exact_fact"], version=2))
    assert known_by("exact_fact", {}) == {"metric_version": "2"}
