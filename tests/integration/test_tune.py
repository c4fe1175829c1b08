"""A small search from end to end: trials and failures, a winner that its own file reproduces, the MLflow runs."""

import json

import pytest
import yaml

from engine.cli import main

EXPERIMENT = {
    "name": "tiny",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 10, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "train": {"steps": 2},
    "sampling": {"n": 8, "max_new_tokens": 8},
    "metrics": ["exact_fact", "rouge_l_recall"],
    "leak": {"k": [1, 8], "beams": 2},
}
SPACE = {
    "method": "npo",
    "parameters": {"beta": {"choice": [0.5, 5.0]}, "train.lr": {"choice": [1e-3, 1e30]}},
    "objective": {"k": 8, "metric": "rouge_l_recall", "excess": True},
    "keep": {"utility": 0.95, "rouge_l_recall": 0.1},
    "search": "grid",
    "rungs": [{"n": 2}, {"n": 4}],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all searches here: the target and the retain model are made once."""
    return tmp_path_factory.mktemp("tune") / "store"


@pytest.mark.slow
def test_a_search_survives_failures_and_finds_a_winner_that_its_file_reproduces(tmp_path, store, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE))
    assert main(["tune", str(tmp_path / "s.yaml"), str(tmp_path / "e.yaml"), "--store", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["tune", str(tmp_path / "s.yaml"), str(tmp_path / "e.yaml"), "--store", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == found["trials"]  # a finished search answers from its record
    (folder,) = (store / "tune").glob("tiny-npo-*")

    failed = [each for each in found["trials"] if each["failed"]]
    assert [each["values"]["train.lr"] for each in failed] == [1e30, 1e30]
    assert all("diverged" in each["failed"] or "nan" in each["failed"] for each in failed)

    best = found["trials"][0]
    assert best["id"] == found["best"]["id"]
    full = [each for each in found["trials"] if each["full"] and each["feasible"]]
    assert best["leak"] == min(each["leak"] for each in full)
    assert best["excess_low"] <= best["excess"] <= best["excess_high"]
    assert set(best["kept"]) == {"utility", "rouge_l_recall"}
    record = [json.loads(line) for line in (folder / "looks.jsonl").read_text().splitlines()]
    reports = [row["seen"] for row in record if row["trial"] == best["id"]]
    assert [each["n"] for each in reports] == [2, 4, 8]
    assert reports[0]["bound"] <= reports[1]["bound"] <= best["leak"]

    # The winner's file makes the same numbers in a store that has nothing of the search.
    assert main(["run", str(folder / "best.yaml"), "--store", str(tmp_path / "fresh"), "--json"]) == 0
    assert numbers(json.loads(capsys.readouterr().out)) == numbers(found["run"])
    assert found["halves"]["decided"]["leak"][0] == best["leak"]
    assert found["halves"]["decided"]["excess"][0] == pytest.approx(best["excess"], abs=1e-12)
    assert set(found["halves"]) == {"decided", "held out", "forget_paraphrase"}

    assert all((folder / name).stat().st_size > 1000 for name in ("pareto.png", "parallel.png", "greedy.png"))
    runs = recorded(store)
    runs = [run for run in runs if run.data.tags["leakatk.search"] == folder.name]
    parent = next(run for run in runs if run.data.tags["leakatk.kind"] == "search")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert parent.data.metrics["best.leak"] == best["leak"]

    # Looked at while it is trained, a trial ends as it would have otherwise.
    assert followed(tmp_path, store, best["values"])[-1].leak == reports[0]["leak"]


@pytest.mark.slow
def test_a_search_makes_small_what_an_attack_gives_back(tmp_path, store, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    relearn = {"name": "relearn", "share": 0.3, "steps": 2, "train": {"lr": 1e-3, "batch_size": 4}}
    space = SPACE | {"parameters": {"beta": {"choice": [0.5]}}, "rungs": [{"n": 4}]}
    space["objective"] = {"k": 8, "excess": True, "attack": relearn}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"name": "attacked"}))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(space | {"keep": {"utility": 0.1}}))
    assert main(["tune", str(tmp_path / "s.yaml"), str(tmp_path / "e.yaml"), "--store", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objective"]["attack"]["name"] == "relearn"
    best = found["trials"][0]
    # The winner's run makes the same attack on the same models: the prompts that decided have the same samples.
    attacks = {row["name"]: row["attacks"] for row in found["run"]["models"]}
    assert [attack["attack"] for attack in attacks["npo"]] == ["relearn-0.3"]
    assert found["halves"]["decided"]["leak"][0] == best["leak"]
    assert found["halves"]["decided"]["excess"][0] == pytest.approx(best["excess"], abs=1e-12)
    assert set(found["halves"]) == {"decided", "held out", "forget_paraphrase"}
    (folder,) = (store / "tune").glob("attacked-npo-*")
    best_file = yaml.safe_load((folder / "best.yaml").read_text())
    assert best_file["attacks"] == [relearn]


def numbers(run):
    """What a run found, without the time that it took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run["models"]]


def followed(folder, store, values):
    """The reports of a trial at this point with ASHA, which looks after one of its two steps."""
    from benchmarks import BENCHMARKS
    from engine.config.experiment import load_experiment
    from engine.pipeline.preparation import prepared
    from engine.search.space import load_space
    from engine.search.trial import run_trial
    from engine.search.trial_evaluation import Setting

    benchmark = BENCHMARKS["fictional"].load(split="forget01")
    experiment = prepared(load_experiment(folder / "e.yaml"), benchmark)
    (folder / "asha.yaml").write_text(yaml.safe_dump(SPACE | {"asha": {"first": 3, "reduction": 2, "n": 2}}))
    space = load_space(folder / "asha.yaml", experiment, benchmark)
    reports = list(run_trial(values, Setting(experiment, space, str(store), "forget", "rouge_l_recall")))
    assert [each.epoch for each in reports] == [3.0, 0.0]
    assert not any(each.failed for each in reports)
    return reports


def recorded(store):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    where = client.get_experiment_by_name("leakatk").experiment_id
    return [run for run in client.search_runs([where]) if "leakatk.search" in run.data.tags]
