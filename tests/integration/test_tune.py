"""A small search from end to end: trials, a winner that its own file reproduces, and nothing done twice."""

import json

import pytest
import yaml

from engine.cli import main

EXPERIMENT = {
    "name": "tiny",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 10, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "sampling": {"n": 8, "max_new_tokens": 8},
    "metrics": ["exact_fact", "rouge_l_recall"],
    "leak": {"k": [1, 8]},
}
SPACE = {
    "method": "npo",
    "parameters": {"beta": {"loguniform": [0.1, 10.0]}, "train.steps": {"choice": [1, 2]}},
    "objective": {"k": 8, "metric": "rouge_l_recall"},
    "trials": 3,
    "rungs": [{"n": 2}],
}


@pytest.mark.slow
def test_a_search_finds_a_winner_that_its_file_reproduces(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE))
    store = ["--store", str(tmp_path / "store"), "--json"]
    assert main(["tune", str(tmp_path / "s.yaml"), str(tmp_path / "e.yaml"), *store]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["trials"]) == 3
    best = found["trials"][0]
    assert best["id"] == found["best"]["id"]
    assert best["leak"] == min(each["leak"] for each in found["trials"] if each["full"] and each["feasible"])
    folder = next((tmp_path / "store" / "tune").glob("*/best.yaml")).parent
    assert main(["run", str(folder / "best.yaml"), *store]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == found["run"]["models"]
    assert all((folder / name).stat().st_size > 1000 for name in ("pareto.png", "parallel.png", "search.json"))
