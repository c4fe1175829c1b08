"""Portable arithmetic: who has it, what it asks of a worker, and which stages know of it."""

import dataclasses

import pytest

from benchmarks import BENCHMARKS
from benchmarks.base import Decoding, Example, Probe
from engine.cluster.numerics import worker_environment
from engine.config.experiment import parse_experiment
from engine.config.sections import TrainSection
from engine.models.source import ModelSource, model_source
from engine.pipeline.identity import experiment_fingerprint
from engine.robustness.attacks.prune import Prune
from engine.robustness.weights import WeightsJob
from engine.stages.base_model import BaseModelJob
from engine.stages.known_answers import AnswersJob
from engine.stages.likelihood import LikelihoodJob
from engine.stages.reference import ReferenceJob
from engine.stages.sample import SampleJob
from engine.train.job import TrainJob
from engine.train.launch import Training
from engine.train.torch_backend import TorchBackend

MODEL, EXAMPLES = ModelSource("m", "m"), (Example("a", "b", "c"),)


def made(name, **keys):
    document = {"benchmark": {"name": name}, **keys}
    return parse_experiment(document, "test").with_protocol(BENCHMARKS["fictional"].load().protocol)


def training(**options):
    return Training(TrainJob(MODEL, {"name": "npo"}, TrainSection(**options), EXAMPLES, portable=True))


def native(stage):
    """The same stage, or what it samples or trains, in the machine's own arithmetic."""
    for part in ("sampling", "job"):
        if hasattr(stage, part):
            return dataclasses.replace(stage, **{part: native(getattr(stage, part))})
    return dataclasses.replace(stage, portable=False)


def test_the_embedded_benchmarks_own_model_is_portable_and_a_given_one_native():
    assert made("fictional").numerics == "portable"
    assert made("fictional", model={"path": "m"}).numerics == "native"
    assert made("fictional", model={"path": "m"}, numerics="portable").portable
    assert not made("fictional", numerics="native").portable


def test_native_runs_keep_the_identity_that_they_had_before_there_was_a_choice():
    given = made("fictional", model={"path": "m"})
    assert experiment_fingerprint(given.model_copy(update={"numerics": None})) == experiment_fingerprint(given)
    assert experiment_fingerprint(given.model_copy(update={"numerics": "portable"})) != experiment_fingerprint(given)


def test_a_worker_on_a_gpu_keeps_its_own_arithmetic():
    assert worker_environment(True)["env_vars"]["MKL_CBWR"] == "COMPATIBLE"
    assert worker_environment(True, gpus=0.5) == worker_environment(False) == {}


@pytest.mark.parametrize(
    "stage",
    [
        sampling := SampleJob(MODEL, (Probe("a", "b", "c", "forget"),), Decoding(), 2, 4, portable=True),
        AnswersJob(sampling, "exact_fact"),
        LikelihoodJob(MODEL, EXAMPLES, portable=True),
        ReferenceJob(MODEL, EXAMPLES, portable=True),
        WeightsJob("prune", Prune(), MODEL, portable=True),
        BaseModelJob(BENCHMARKS["fictional"].load(), {}, 0, portable=True),
        training(),
    ],
    ids=lambda stage: stage.kind,
)
def test_a_portable_stage_is_another_one_and_a_native_one_is_known_as_before(stage):
    before = native(stage).inputs()
    assert before.pop("numerics", None) in (None, "cpu-fp32")
    now = stage.inputs()
    assert "portable" in now.pop("numerics")
    assert now == before


def test_what_many_workers_train_is_native_and_known_so():
    for options in ({"workers": 2}, {"zero_stage": 1}):
        assert training(**options).inputs() == native(training(**options)).inputs()


def test_the_portable_optimizer_takes_no_root_by_mkl(base_model):
    settings, source = TrainSection(), model_source(str(base_model))
    assert TorchBackend(source, settings, 1, "cpu", 0, portable=True).optimizer.defaults["fused"]
    assert not TorchBackend(source, settings, 1, "cpu", 0).optimizer.defaults["fused"]


def test_a_training_on_a_gpu_is_none_that_cpus_share(monkeypatch):
    on_cpu = training().inputs()
    monkeypatch.setattr("engine.cluster.ray_cluster.has_gpus", lambda: True)
    assert training().inputs() == native(training()).inputs() != on_cpu
