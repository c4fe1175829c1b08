"""Audits of attacked runs: each attack's row is of its own samples, those of families of prompts pooled."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.base import Decoding
from engine.cli import main
from engine.leak import leak_at_k
from engine.pipeline.imported_run import imported_run
from engine.reporting.eval_logs import Recomputed
from engine.reporting.imported_log import ImportedLog, Item
from engine.reporting.records import AttackResult
from engine.reporting.results import ModelResults
from engine.store.store import Store

pytestmark = pytest.mark.usefixtures("undrawn")

FACTS = ["silent harbor", "crooked medal"]
PLAIN = [["silent harbor", "no"], ["no", "no"]]
QUANTIZED = [["silent harbor", "silent harbor"], ["no", "crooked medal"]]
PREFIXED, REWORDED = [["no", "no"], ["crooked medal", "no"]], [["silent harbor", "no"], ["no", "no"]]
FAMILIES = {"forget_prefix-1": "~prefix-1", "forget_paraphrased": "~paraphrase"}  # what ids of their prompts end in
NOTHING = [["no", "no"]] * 2


def log(name, said_by_group):
    """said_by_group: by group the texts [prompts][samples]; the ids of a family's prompts end in its name."""
    items = []
    for group, said in said_by_group.items():
        family = FAMILIES.get(group, "")
        for index, (fact, texts) in enumerate(zip(FACTS, said, strict=True)):
            items.append(Item(f"{index}{family}", group, f"Q{index}", fact, tuple(texts)))
    return ImportedLog("made", {"name": "made"}, tuple(items), Recomputed({}, {}, {}), "exact_fact", Decoding(), name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The store with the run of a model and a retain model, each after two attacks, put together from logs."""
    store = Store(tmp_path_factory.mktemp("attacked") / "store")

    def rows(name, model, retain):
        logs = log(name, model), log(f"{name} retain", retain)
        return imported_run(*logs, name, store, "exact_fact")

    written = rows("npo", {"forget": PLAIN}, {"forget": NOTHING})
    quantized = rows("quantized", {"forget": QUANTIZED}, {"forget": NOTHING})
    families = {"forget_prefix-1": PREFIXED, "forget_paraphrased": REWORDED}
    asked = rows("asked", families, dict.fromkeys(families, NOTHING))
    models = []
    for place, model in enumerate(written.results.models):
        attacks = [AttackResult("quantize-int8", quantized.results.models[place].curves[0], 0.5,
                                stages=quantized.results.models[place].stages)]  # fmt: skip
        other = asked.results.models[place]
        attacks += [
            AttackResult(f"prompts-{name}", other.curves[0], 0.5, stages=other.stages)
            for name in ("prefix-1", "paraphrase", "joint")
        ]
        models.append(dataclasses.replace(model, attacks=attacks))
    dataclasses.replace(written.results, models=ModelResults(models)).write(written.folder)
    return store.root, written.folder.name


@pytest.fixture
def attacked(made, tmp_path):
    """(store, run), to be changed."""
    store, run = made
    shutil.copytree(store, tmp_path / "store")
    return tmp_path / "store", tmp_path / "store" / "runs" / run


def test_each_attack_is_of_its_own_samples_and_the_joint_one_of_all(attacked, capsys):
    _, run = attacked
    assert main(["audit", str(run), "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    npo, retain = audit["models"]
    found = {finding["attack"]: finding["leak"] for finding in npo["findings"]}
    said = {"": PLAIN, "quantize-int8": QUANTIZED, "prompts-prefix-1": PREFIXED, "prompts-paraphrase": REWORDED}
    said["prompts-joint"] = [one + other for one, other in zip(PREFIXED, REWORDED, strict=True)]
    for attack, texts in said.items():
        scores = np.array([[text == fact for text in row] for fact, row in zip(FACTS, texts, strict=True)], dtype=float)
        assert found[attack] == pytest.approx(leak_at_k(scores, [1, 2]).tolist()), attack
    assert np.array([finding["excess"] for finding in npo["findings"]]) == pytest.approx(np.array(list(found.values())))
    assert all(finding["leak"] == [0, 0] for finding in retain["findings"])
    assert audit["level"] == 3
    assert "Of 4 attacks quantize-int8 gets most out of npo: leak@2 1.000" in audit["follows"][0]
    assert main(["verify", str(run / "audit.json")]) == 0
    page = (run / "audit.html").read_text()
    assert page.count("after prompts-joint<") == 2


def test_a_changed_text_after_an_attack_is_named_with_all_rows_that_it_moves(attacked, capsys):
    store, run = attacked
    assert main(["audit", str(run), "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    folder = store / audit["models"][0]["attacks"]["prompts-joint"]["generations T1-p1"]["folder"]
    path = sorted((folder / "units").glob("*.parquet"))[0]
    table = pyarrow.parquet.read_table(path)
    texts = table["response"].to_pylist()
    texts[0] = "silent harbor"
    column = table.column_names.index("response")
    pyarrow.parquet.write_table(table.set_column(column, "response", pyarrow.array(texts)), path)
    assert main(["verify", str(run / "audit.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "npo after prompts-prefix-1 T1-p1: stored score of prompt 0~prefix-1, sample 0" in line for line in lines
    )
    moved = {line.partition(", ")[2].split(" ")[0] for line in lines if "leak at k = 1" in line}
    assert moved == {"prompts-prefix-1", "prompts-joint"}


def test_a_run_of_an_older_version_whose_attacks_name_no_samples_is_one_line(attacked, capsys):
    _, run = attacked
    values = json.loads((run / "results.json").read_text())
    for attack in values["models"][0]["attacks"]:
        attack["stages"] = {}
    (run / "results.json").write_text(json.dumps(values))
    assert main(["audit", str(run)]) == 2
    assert "does not name the samples under quantize-int8" in capsys.readouterr().err
