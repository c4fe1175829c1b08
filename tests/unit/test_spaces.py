"""Search spaces are checked before anything starts, and every mistake is one line."""

import numpy as np
import pytest
import yaml

from benchmarks.base import Probe
from engine.errors import UserError
from engine.experiment import parse_experiment
from engine.spaces import load_space
from engine.trial import deciding

SPACE = {
    "method": "npo",
    "parameters": {"beta": {"loguniform": [0.1, 10.0]}, "train.lr": {"choice": [1e-4, 1e-3]}},
    "objective": {"k": 64},
}


@pytest.fixture
def load(fictional, tmp_path):
    def load(**changes):
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE | changes))
        experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "e.yaml")
        return load_space(tmp_path / "space.yaml", experiment.with_protocol(fictional.protocol))

    return load


def test_a_point_of_the_space_is_a_method_with_its_training(load):
    section = load(fixed={"gamma": 0.2}).section({"beta": 2.0, "train.lr": 1e-4})
    assert section.hyperparameters == {"gamma": 0.2, "beta": 2.0}
    assert section.train == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"bta": {"uniform": [0, 1]}}}, "bta"),
        ({"parameters": {"beta": {"uniform": [2, 1]}}}, "empty"),
        ({"parameters": {"beta": {"loguniform": [0, 1]}}}, "above 0"),
        ({"parameters": {"beta": {"uniform": [0, 1], "choice": [1]}}}, "exactly one"),
        ({"parameters": {"train.steps": {"int": [0, 5]}}}, "steps"),
        ({"parameters": {"beta": {"uniform": [1, 2], "when": {"gamma": [1]}}}}, "stands above"),
        ({"method": "npoo"}, "'npo'"),
        ({"method": "rule"}, "not searched"),
        ({"objective": {"k": 201}}, "more than sampling.n = 200"),
        ({"objective": {"k": 8, "metric": "cosine"}}, "not cosine"),
        ({"rungs": [{"n": 300}]}, "no cheaper"),
        ({"rungs": [{"n": 8}, {"n": 8}]}, "must grow"),
        ({"search": "grid"}, "grid takes `choice`"),
        ({"trails": 3}, "'trials'"),
    ],
)
def test_a_mistake_is_named_in_one_line(load, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_half_of_the_entities_decide_and_none_stands_on_both_sides():
    probes = [Probe(f"author{author}/q{item}", "?", "!", "forget") for author in range(10) for item in range(4)]
    half = deciding(probes, 0)
    authors = {probe.id.split("/")[0] for probe in half}
    assert len(half) == 20
    assert len(authors) == 5
    assert {probe.id for probe in deciding(probes, 1)} != {probe.id for probe in half}
    first = {probe.id.split("/")[0] for probe in half[:10]}
    assert len(first) > 3  # the first few are a sample of all, not one author after the other
    assert np.unique([probe.id for probe in half]).size == 20
