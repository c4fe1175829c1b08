"""`leakatk export`: what others read of a run is what the run says."""

import dataclasses
import json
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from engine.cli import main
from engine.reporting.results import ModelResults, read_results
from tests.made import make_run

FACTS = ["silent harbor", "crooked medal"]
MODELS = {
    ("retain", "retain"): [["no"] * 4] * 2,
    ("npo", "unlearned"): [["silent harbor", "no", "no", "no"], ["no"] * 4],
}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "store", "mine", MODELS, FACTS)


def exported(capsys, run, *arguments):
    assert main(["export", str(run), "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)["files"]


def test_curves_are_a_tidy_table(run, capsys):
    (path,) = exported(capsys, run)
    table = pandas.read_csv(path)
    row = table[(table.model == "npo") & (table.k == 4)].iloc[0]
    curve = read_results(run).models["npo"].curves[0]
    assert (row.leak, row.low, row.high, row.excess) == (curve.leak[2], curve.low[2], curve.high[2], curve.excess[2])


def test_every_score_is_a_row(run, capsys, tmp_path):
    (path,) = exported(capsys, run, "--items", "--out", tmp_path / "items.csv")
    table = pandas.read_csv(path)
    assert len(table) == 2 * 2 * 4
    leaking = table[table.score == 1]
    assert leaking[["model", "group", "prompt_id", "sample"]].values.tolist() == [["npo", "forget", "p0", 0]]


def test_openunlearnings_files_read_back_as_the_run_says(run, capsys, tmp_path):
    results = read_results(run)
    stage = tmp_path / "store" / "generations" / "greedy"
    (stage / "units").mkdir(parents=True)
    rows = {"group": ["forget"] * 2, "prompt": ["a", "b"], "reference": FACTS, "response": ["silent harbor", "a medal"]}
    pyarrow.parquet.write_table(pyarrow.table(rows), stage / "units" / "0.parquet")
    metrics = {"model_utility": 0.5, "forget_quality": None, "truth_ratio.forget": 0.6, "probability.real_authors": 0.4}
    model = results.models["npo"]
    changed = dataclasses.replace(
        model, metrics=metrics | {"mia_min_k": 0.7}, stages=model.stages | {"generations greedy": "generations/greedy"}
    )
    dataclasses.replace(results, models=ModelResults([changed])).write(run)
    log_path, summary_path = exported(capsys, run, "--format", "open-unlearning", "--out", tmp_path / "out")
    log = json.loads(Path(log_path).read_text())
    assert log["forget_quality"] == {"agg_value": None}
    assert log["ra_Q_A_Prob_normalised"] == {"agg_value": 0.4}
    assert log["mia_min_k"]["auc"] == 0.7
    assert [row["generation"] for row in log["forget_Q_A_ROUGE"]["value_by_index"].values()] == rows["response"]
    assert json.loads(Path(summary_path).read_text()) == {
        "model_utility": 0.5,
        "forget_truth_ratio": 0.6,
        "ra_Q_A_Prob_normalised": 0.4,
        "mia_min_k": 0.7,
        "forget_Q_A_ROUGE": 0.75,
    }
    assert main(["import", log_path, "--json", "--store", str(tmp_path / "other")]) == 0
    back = json.loads(capsys.readouterr().out)
    assert back["metrics"]["forget_Q_A_ROUGE"] == back["stated"]["forget_Q_A_ROUGE"] == 0.75


def test_what_cannot_be_exported_is_one_line(run, capsys, tmp_path):
    for arguments in (["--items", "--format", "open-unlearning"], ["--items", "--store", str(tmp_path / "other")]):
        assert main(["export", str(run), *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
