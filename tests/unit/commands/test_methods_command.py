"""`leakatk methods` tells what there is, what it takes and where it is from."""

import json

import pytest

from engine.cli import main
from methods import METHODS

NEEDS = {"retain", "reference_logprob", "reference_model", "alternate", "two_gradients"}


@pytest.fixture
def listed(capsys):
    assert main(["methods", "--json"]) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)}


def test_every_method_is_listed_with_its_source(listed):
    assert list(listed) == list(METHODS)
    for each in listed.values():
        assert each["summary"].endswith(".")
        assert "arXiv" in each["source"]
        assert set(each["needs"]) <= NEEDS


def test_defaults_are_those_that_the_methods_have_in_their_papers(listed):
    def of(name):
        return listed[name]["hyperparameters"]

    assert of("npo") == {"beta": 0.1, "gamma": 1.0, "alpha": 1.0}
    assert of("simnpo") == {"beta": 4.5, "delta": 0.0, "gamma": 0.125, "alpha": 1.0}
    assert (of("rmu")["layer"], of("rmu")["c"]) == (7, 2.0)
    assert (of("undial")["beta"], of("undial")["alpha"]) == (10.0, 0.0)
    assert (of("satimp")["b1"], of("satimp")["b2"], of("satimp")["gamma"]) == (5.0, 1.0, 0.1)
    assert (of("pdu")["eps"], of("pdu")["eta"], of("pdu")["warmup_epochs"]) == ("required", 1.0, 5.0)
    assert (of("npo_ent")["beta"], of("npo_ent")["lambda_retain"]) == (0.05, -0.25)


def test_the_table_names_every_method(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)
