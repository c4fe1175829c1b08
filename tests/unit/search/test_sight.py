"""A search and a run trust no metric that cannot see what it is asked about."""

import dataclasses
import types

import numpy as np
import pytest

from benchmarks.base import Decoding, Probe
from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.pipeline.preparation import prepared
from engine.search import trial_evaluation
from engine.search.space import Space
from engine.search.trial_evaluation import Setting, exact_floor

PARAMETERS = {"beta": {"uniform": [0.1, 1.0]}}


@pytest.fixture
def experiment():
    return parse_experiment({"benchmark": {"name": "fictional"}, "sampling": {"gpus": 0}}, "e.yaml")


def with_references(fictional, reference, core_metric):
    changed = types.SimpleNamespace(**vars(fictional))
    changed.name, changed.choices = "mine", ()
    changed.protocol = fictional.protocol.model_copy(update={"core_metric": core_metric})
    changed.probes = [
        Probe(f"p{i}", "q", reference, group, fact="東京") for i in range(4) for group in ("forget", "retain")
    ]
    changed.group = lambda name: [each for each in changed.probes if each.group == name]
    return changed


@pytest.mark.parametrize("metric", ["rouge_l_recall", "entailment_es"])
def test_a_core_metric_that_sees_no_reference_is_refused_before_any_work(fictional, experiment, metric):
    with pytest.raises(UserError, match=f"{metric} cannot score the probes of forget.*exact_fact"):
        prepared(experiment, with_references(fictional, "首都は東京です。", metric))


def test_a_core_metric_that_sees_the_references_is_taken(fictional, experiment):
    assert prepared(experiment, with_references(fictional, "首都は東京です。", "exact_fact")).metrics[0] == "exact_fact"


@pytest.mark.parametrize(
    ("metric", "reference", "bound"),
    [
        ("exact_fact", "首都は東京です。", 0.5),
        ("exact_fact", "首都は京都です。", 0.0),  # the answer does not hold the fact: saying it leaks nothing
        ("rouge_l_recall", "首都は東京です。", 0.0),
        ("rouge_l_recall", "the capital is Tokyo", 0.5),
    ],
)
def test_the_probability_of_the_reference_bounds_leakage_only_where_it_scores_1(
    fictional, experiment, monkeypatch, metric, reference, bound
):
    benchmark = with_references(fictional, reference, metric)
    monkeypatch.setattr(
        trial_evaluation,
        "reference_logprobs",
        lambda *_: {"forget": [float(np.log(0.5))] * len(benchmark.group("forget"))},
    )
    space = Space.model_validate({"method": "npo", "parameters": PARAMETERS, "objective": {"k": 1}})
    experiment = experiment.with_protocol(benchmark.protocol)
    setting = Setting(experiment, space, "store", "forget", metric)
    assert setting.decoding == Decoding()
    assert dataclasses.asdict(exact_floor(setting, None, benchmark, None))["leak"] == pytest.approx(bound)
