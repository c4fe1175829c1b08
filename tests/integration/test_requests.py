"""Unlearning requests made one after the other: each goes on from the last, and all so far are watched."""

import json
from pathlib import Path

import pytest
import yaml

from engine.cli import main

pytestmark = pytest.mark.usefixtures("unrecorded", "undrawn")

EXPERIMENT = {
    "name": "requests",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "numerics": "native",
    "model": {"finetune": {"steps": 20, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "methods": [
        {"name": "grad_diff", "train": {"steps": 2}},
        {"name": "rule", "base": {"name": "npo"}, "rounds": 1, "samples": 4, "steps": 1, "tolerance": 0.0,
         "threshold": 0.01, "metric": "rouge_l_recall", "control": False, "train": {"steps": 2}},
    ],
    "requests": [5, 7],
    "sampling": {"n": 4, "max_new_tokens": 8},
    "leak": {"k": [1, 4], "beams": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory, undrawn):
    folder = tmp_path_factory.mktemp("requests")
    (folder / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    assert main(["run", str(folder / "e.yaml"), "--store", str(folder / "store"), "--json"]) == 0
    results = json.loads(next((folder / "store" / "runs").glob("*/results.json")).read_text())
    return {model["name"]: model for model in results["models"]}


def prompts(model):
    return {curve["group"]: curve["prompts"] for curve in model["curves"] if curve["metric"] == "exact_fact"}


def test_each_method_has_a_model_a_request_and_each_counts_the_requests_so_far(models):
    assert list(models) == [
        "target", "retain", "grad-diff-request1", "grad-diff-request2",
        "rule-npo-request1", "rule-npo-request2",
    ]  # fmt: skip
    both = {"forget": 12, "forget.request1": 5, "forget.request2": 7}
    of_all = both | {name.replace("forget", "forget_paraphrase"): count for name, count in both.items()}
    of_first = {"forget": 5, "forget.request1": 5, "forget_paraphrase": 5, "forget_paraphrase.request1": 5}
    for name, model in models.items():
        assert prompts(model) == (of_first if name.endswith("request1") else of_all)
        assert set(prompts(model)) <= set(model["greedy"])


def test_the_whole_is_the_mean_of_its_requests_by_size(models):
    curves = {curve["group"]: curve for curve in models["target"]["curves"] if curve["metric"] == "rouge_l_recall"}
    parts = (5 * curves["forget.request1"]["leak"][1] + 7 * curves["forget.request2"]["leak"][1]) / 12
    assert curves["forget"]["leak"][1] == pytest.approx(parts)


@pytest.mark.parametrize("name", ["grad-diff", "rule-npo"])
def test_a_request_starts_from_what_the_one_before_left(models, name):
    first, second = (Path(models[f"{name}-request{each}"]["stages"]["model"]).parent for each in (1, 2))
    manifest = second / "manifest.json"
    while (inputs := json.loads(manifest.read_text())["inputs"])["continue_from"]:  # RULE's rounds continue its round 0
        manifest = manifest.parents[1] / inputs["continue_from"] / "manifest.json"
    assert inputs["model"] == json.loads((first / "manifest.json").read_text())["fingerprint"]


def test_requests_that_do_not_add_up_are_refused(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"requests": [5, 6]}))
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store")]) == 2
    assert "requests: 11 examples in all, but the forget set has 12" in capsys.readouterr().err
