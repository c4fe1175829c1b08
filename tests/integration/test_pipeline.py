"""A small experiment from end to end: results, report, picture, MLflow; and again without any work."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from engine.cli import main
from engine.reporting.results import read_results
from tests.golden import SMALL, differences, found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def run(folder, capsys):
    code = main(["run", str(folder / "small.yaml"), "--store", str(folder / "store"), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_experiment_gives_a_row_a_model_with_intervals_and_excess(ran, capsys):
    code, result = run(ran, capsys)
    assert code == 0
    assert [row["name"] for row in result["models"]] == ["target", "retain", "npo", "rule-npo", "npo-control"]
    for row in result["models"]:
        assert set(row["leak"]) == {"1", "4", "16"}
        assert all(0 <= low <= estimate <= high <= 1 for estimate, low, high in row["leak"].values())
        assert row["leak"]["1"][0] <= row["leak"]["4"][0] <= row["leak"]["16"][0]
        excess, yardstick = row["excess"]["4"][0], result["models"][1]["leak"]["4"][0]
        assert excess == pytest.approx(row["leak"]["4"][0] - yardstick)


def test_weights_samples_and_numbers_are_those_of_every_other_processor(ran, capsys):
    run(ran, capsys)
    results = read_results(next((ran / "store" / "runs").glob("*/results.json")))
    assert not differences("experiment", found(results, ran / "store"))


def test_a_second_run_works_nothing_again_and_says_the_same(ran, capsys):
    _, first = run(ran, capsys)
    manifests = {path: path.stat().st_mtime_ns for path in (ran / "store").glob("*/*/manifest.json")}
    _, second = run(ran, capsys)
    assert second["models"] == first["models"]
    assert {path: path.stat().st_mtime_ns for path in (ran / "store").glob("*/*/manifest.json")} == manifests


def test_rule_records_its_rounds_and_enlarges_its_pool(ran, capsys):
    run(ran, capsys)
    results = json.loads(next((ran / "store" / "runs").glob("*/results.json")).read_text())
    ruled = next(model for model in results["models"] if model["name"] == "rule-npo")
    control = next(model for model in results["models"] if model["name"] == "npo-control")
    assert [each["round"] for each in ruled["rounds"]] == [1, 2]
    assert all(each["leaking_samples"] > 0 for each in ruled["rounds"])
    assert ruled["rounds"][0]["pool"] < ruled["rounds"][1]["pool"]
    assert ruled["rounds"][0]["pool"] > 0
    assert ruled["steps"] == control["steps"] == 8


def test_rules_rounds_hold_leak_by_k_and_utility(ran, capsys):
    run(ran, capsys)
    results = json.loads(next((ran / "store" / "runs").glob("*/results.json")).read_text())
    for each in next(model for model in results["models"] if model["name"] == "rule-npo")["rounds"]:
        assert set(each["leak"]) == {"1", "4"}  # of m = 8 samples
        assert 0 <= each["leak"]["1"] <= each["leak"]["4"] <= each["leak_at_m"] <= 1
        assert 0 <= each["utility"] <= 1


def test_a_training_is_looked_at_on_its_way(ran, capsys):
    run(ran, capsys)
    results = json.loads(next((ran / "store" / "runs").glob("*/results.json")).read_text())
    npo = next(model for model in results["models"] if model["name"] == "npo")
    steps = json.loads((Path(npo["stages"]["model"]).parent / "history.json").read_text())
    seen = [{key for key in step if key.startswith("watch.")} for step in steps]
    assert seen == [set(), {"watch.greedy", "watch.leak_at_4", "watch.utility"}] * 2
    assert steps[1]["watch.leak_at_4"] >= 0


def test_mlflow_holds_each_model_once_with_its_curve_by_k(ran, capsys):
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    run(ran, capsys)
    run(ran, capsys)
    client = MlflowClient(f"sqlite:///{ran / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("leakatk")
    runs = client.search_runs([experiment.experiment_id])
    names = [each.info.run_name for each in runs]
    assert sorted(set(names) - {"round 1", "round 2"}) == [
        "npo",
        "npo-control",
        "retain",
        "rule-npo",
        "small",
        "target",
    ]
    assert len(names) == 8
    npo = next(each for each in runs if each.info.run_name == "npo")
    parent = next(each for each in runs if each.info.run_name == "small")
    assert npo.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = client.get_metric_history(npo.info.run_id, "leak_at_k.exact_fact")
    assert [point.step for point in history] == [1, 4, 16]
    artifacts = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert {"results.json", "report.html", "leak_at_k.png"} <= artifacts


def test_what_was_seen_in_training_stood_in_mlflow_before_the_end_and_gave_way_to_the_recording(ran, capsys):
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    run(ran, capsys)
    client = MlflowClient(f"sqlite:///{ran / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("leakatk")
    runs = client.search_runs([experiment.experiment_id], "tags.`leakatk.kind` = 'live'", ViewType.ALL)
    assert {each.info.run_name for each in runs} == {"small (live)", "npo"}
    assert all(each.info.lifecycle_stage == "deleted" for each in runs)
    live = next(each for each in runs if each.info.run_name == "npo")
    for name in ("watch.greedy", "watch.leak_at_4", "watch.utility", "loss.total"):
        assert [point.step for point in client.get_metric_history(live.info.run_id, name)] == [2, 4]
    recorded = client.search_runs([experiment.experiment_id], "attributes.run_name = 'npo'")
    assert live.info.end_time < recorded[0].info.start_time


def test_a_method_that_diverges_is_reported_beside_the_others(ran, capsys):
    arguments = ["run", str(ran / "small.yaml"), "--store", str(ran / "store"), "--json"]
    code = main([*arguments, "--set", "methods.0.train.lr=1e30", "--set", "methods.0.train.clip=1e30"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert code == 1
    assert "finite" in result["failed"]["npo"]  # logits, seen when the model is looked at
    assert [row["name"] for row in result["models"]] == ["target", "retain", "rule-npo", "npo-control"]


def test_more_workers_than_cores_are_refused_before_any_work(tmp_path, capsys):
    document = SMALL | {"train": {"workers": 640, "batch_size": 640, "retain_batch_size": 640}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store")]) == 2
    assert "640 workers need 640 CPUs" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("*/*/manifest.json"))


def test_methods_with_other_answers_get_refusals_or_samples_of_the_target_model(ran, capsys):
    others = "{name: idk_dpo, train: {steps: 2}}, {name: altpo, prompt: '{question}', train: {steps: 2}}"
    methods = f"methods=[{others}, {{name: retrain}}]"
    arguments = ["run", str(ran / "small.yaml"), "--store", str(ran / "store"), "--json", "--set", methods]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["name"] for row in rows] == ["target", "retain", "idk-dpo", "altpo", "retrain"]
    assert rows[4]["leak"] == rows[1]["leak"]  # from the pretrained model, not from the target: the retain model again
