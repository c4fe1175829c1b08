"""What a run is planned to take, against what its stages say that they take."""

import pytest

from benchmarks import BENCHMARKS
from benchmarks.base import Example
from engine.config.experiment import parse_experiment
from engine.evaluation.jobs import likelihood_job, sample_job
from engine.models.source import ModelSource
from engine.pipeline.work_plan import planned_work
from engine.stages.known_answers import AnswersJob


@pytest.fixture
def benchmark():
    """The embedded one, with a metric by likelihoods and one by gradient norms."""
    benchmark = BENCHMARKS["fictional"].load(split="forget01")
    asked = {"attacks": ("loss", "gradnorm"), "forget_group": "forget"}
    benchmark.protocol = benchmark.protocol.model_copy(update=asked)
    benchmark.holdout = [Example(f"h{number}", f"who {number}", "nobody") for number in range(3)]
    return benchmark


def test_each_kind_of_work_is_planned_as_its_stages_count_it(benchmark):
    document = {"benchmark": {"name": "fictional"}, "model": {"path": "m"}, "leak": {"beams": 4, "k": [1]}}
    decodings = [{"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 0.0}]
    document["sampling"] = {"n": 8, "max_new_tokens": 6, "decoding": decodings}
    experiment = parse_experiment(document, "e.yaml").with_protocol(benchmark.protocol).on_devices(0.0, fast_bf16=False)
    planned, model = planned_work(experiment, benchmark, ["model"])["model"], ModelSource("m", "m")
    jobs = [sample_job(experiment, benchmark, model, each) for each in experiment.sampling.decoding]
    assert planned["sample"] == sum(job.amount for job in jobs)
    answers = [AnswersJob(job, "exact_fact", beams=4) for job in jobs if job.decoding.temperature > 0]
    assert planned["known answers"] == sum(each.amount for each in answers)
    assert planned["likelihoods"] == likelihood_job(experiment, benchmark, model).amount
    shared = experiment.sampling.model_copy(update={"tensor_parallel": 2})
    served = experiment.model_copy(update={"sampling": shared})
    assert set(planned_work(served, benchmark, ["model"])["model"]) == {"sample"}


def test_rounds_are_planned_by_their_own_steps(benchmark):
    rule = {"name": "rule", "base": {"name": "npo"}, "rounds": 3, "steps": 4, "samples": 8, "control": True}
    train = {"steps": 10, "batch_size": 8, "retain_batch_size": 12}
    document = {"benchmark": {"name": "fictional"}, "methods": [rule], "train": train}
    experiment = parse_experiment(document, "e.yaml").with_protocol(benchmark.protocol).on_devices(0.0, fast_bf16=False)
    planned = planned_work(experiment, benchmark, ["rule-npo", "npo-control"])
    assert planned["rule-npo"]["train"] == planned["npo-control"]["train"] == (10 + 3 * 4) * (8 + 12)
    sampled = planned["rule-npo"]["sample"] - planned["npo-control"]["sample"]
    assert sampled == 3 * 8 * len(benchmark.forget) * experiment.sampling.max_new_tokens
