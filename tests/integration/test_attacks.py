"""Attacks within a run: every model and the retain model, the same again from the store."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from engine.cli import main
from engine.reporting.results import read_results

pytestmark = pytest.mark.usefixtures("unrecorded")

ATTACKS = """
  - {name: quantize, scheme: int8}
  - {name: relearn, share: 0.5, steps: 3, train: {lr: 1.0e-3, batch_size: 8}}
  - {name: prompts, families: [prefix, paraphrase], prefix: [1]}
"""


@pytest.fixture(scope="module")
def attacked(base_model, tmp_path_factory):
    """(store, --json) of a run on an untrained model; its retain model is the same, so that no excess is above 0."""
    folder = tmp_path_factory.mktemp("attacks")
    experiment = folder / "experiment.yaml"
    experiment.write_text(
        f"name: attacked\nbenchmark: {{name: fictional}}\nmodel: {{path: {base_model}, retain: {base_model}}}\n"
        f"sampling: {{n: 4, max_new_tokens: 6}}\nleak: {{k: [1, 4], beams: 2}}\nattacks: {ATTACKS}"
    )
    return experiment, folder / "store"


def run(experiment, store, capsys):
    assert main(["run", str(experiment), "--store", str(store), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_each_model_has_a_row_for_each_attack_and_a_second_run_computes_nothing(attacked, capsys):
    experiment, store = attacked
    found = run(experiment, store, capsys)
    names = ["quantize-int8", "relearn-0.5", "prompts-prefix-1", "prompts-paraphrase", "prompts-joint"]
    for model in found["models"]:
        assert [attack["attack"] for attack in model["attacks"]] == names
        for attack in model["attacks"]:
            assert set(attack["leak"]) == {"1", "4"}
            assert 0 <= attack["utility"] <= 1
    target = found["models"][0]
    assert all(attack["excess"]["4"][0] == 0 for attack in target["attacks"])  # the same model twice
    relearned = target["attacks"][1]
    assert relearned["prompts"] == 36  # half of 72 items were shown
    stages = sorted(path.name for path in store.glob("*/*/manifest.json"))
    kinds = {kind: {path.name for path in (store / kind).iterdir()} for kind in ("attack", "train", "sample", "score")}
    assert len([name for name in kinds["attack"] if "." not in name]) == 1  # one model: its attacked form is shared
    assert run(experiment, store, capsys)["models"] == found["models"]
    assert {kind: {path.name for path in (store / kind).iterdir()} for kind in kinds} == kinds
    assert stages == sorted(path.name for path in store.glob("*/*/manifest.json"))
    (folder,) = (store / "runs").glob("attacked-*")
    assert (folder / "attacks.png").exists()
    attacks = read_results(folder).models[0].attacks
    assert attacks[0].attack == "quantize-int8"
    assert {attack.curve.clusters for attack in attacks} == {6}  # authors, whatever the attack
    assert "Does it stay forgotten?" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_an_attack_that_comes_to_nothing_is_named_and_the_others_stand(attacked, tmp_path, capsys):
    experiment, store = attacked
    lost = tmp_path / "lost.yaml"
    lost.write_text(
        experiment.read_text().partition("attacks:")[0]
        + "attacks: [{name: relearn, share: 0.5, steps: 3, train: {lr: 1.0e+30, batch_size: 8}}, "
        "{name: prompts, families: [prefix], prefix: [1, 60]}]\n"
    )
    assert main(["run", str(lost), "--store", str(store), "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(found["failed"]) == {
        f"{model} {attack}" for model in ("model", "retain") for attack in ("relearn-0.5", "prompts-prefix-60")
    }
    names = ["prompts-prefix-1", "prompts-joint"]
    assert all([attack["attack"] for attack in model["attacks"]] == names for model in found["models"])
    assert "leakatk: model relearn-0.5 failed: " in said.err


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ("[{name: quantise}]", "did you mean 'quantize'"),
        ("[{name: prompts, families: [rhyme]}]", "families"),
        ("[{name: relearn, share: 0.999}]", "leaves none to judge"),
        ("[{name: quantize}, {name: quantize}]", "stands there twice"),
        ("[{name: prune, sparsity: 2}]", "sparsity"),
        ("[{name: quantize, scheme: fp4}]", "'nf4', 'int8' or 'int4'"),
        ("[{name: interpolate}]", "the model before it is unknown"),
        ("[{name: relearn, train: {workers: 500, batch_size: 500}}]", "500"),
    ],
)
def test_a_wrong_attack_is_refused_in_one_line_before_any_work(attacked, tmp_path, capsys, attacks, message):
    experiment, _ = attacked
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(experiment.read_text().partition("attacks:")[0] + f"attacks: {attacks}\n")
    assert main(["run", str(wrong), "--store", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not list((tmp_path / "store").glob("sample/*"))


def test_weights_of_a_model_behind_a_server_cannot_be_attacked(tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        "benchmark: {name: fictional}\nmodel: {path: m, endpoint: 'http://127.0.0.1:9/v1'}\nattacks: [{name: prune}]\n"
    )
    assert main(["run", str(wrong), "--store", str(tmp_path / "store")]) == 2
    assert "behind a server" in capsys.readouterr().err


@pytest.mark.slow
def test_an_audit_of_an_attacked_run_holds_and_names_a_score_of_an_attack_that_was_changed(attacked, capsys):
    experiment, store = attacked
    folder = Path(run(experiment, store, capsys)["folder"])
    results = read_results(folder)
    assert main(["audit", str(folder), "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    assert audit["level"] == 3
    assert audit["forgotten"]["items"] == results.forget["examples"] > 0
    for model, row in zip(audit["models"], results.models, strict=True):
        plain = [finding for finding in model["findings"] if not finding["attack"]]
        assert [finding["leak"] for finding in plain] == [
            curve.leak for curve in row.curves if curve.metric == results.core_metric
        ]
        after = {finding["attack"]: finding for finding in model["findings"] if finding["attack"]}
        assert set(after) == {attack.attack for attack in row.attacks}
        for attack in row.attacks:  # what the audit computes from the store is what the run said
            assert after[attack.attack]["leak"] == attack.curve.leak
            assert after[attack.attack]["excess_high"] == attack.curve.excess_high
            assert after[attack.attack]["prompts"] == attack.curve.prompts
    assert main(["verify", str(folder / "audit.json")]) == 0
    assert "holds" in capsys.readouterr().out
    attacked_stage = audit["models"][0]["attacks"]["prompts-joint"]["scores T1-p1 exact_fact"]["folder"]
    (path, *_) = sorted((store / attacked_stage / "units").glob("*.parquet"))
    whole = path.read_bytes()
    table = pyarrow.parquet.read_table(path)
    scores = table["score"].to_pylist()
    scores[0] = 1.0 - scores[0]
    pyarrow.parquet.write_table(table.set_column(3, "score", pyarrow.array(scores)), path)
    try:
        assert main(["verify", str(folder / "audit.json")]) == 1
        said = capsys.readouterr().out
        assert "model after prompts-" in said
        assert "its text scores" in said
    finally:
        path.write_bytes(whole)
