"""`leakatk import`: what a log holds becomes a run that all other commands take.

reporting/logs holds files that lm-evaluation-harness 0.4.13 (its dummy model, three repeats) and Inspect 0.3.285
(mockllm, three epochs) wrote; of Inspect's the events were left out.
"""

import contextlib
import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from engine.cli import main
from engine.errors import UserError
from engine.leak import leak_at_k
from engine.reporting.imported_log import read_log
from engine.reporting.results import read_results
from engine.tracking.mlflow_run import record

pytestmark = pytest.mark.usefixtures("undrawn")

LOGS = Path(__file__).parents[1] / "reporting" / "logs"
SAMPLES = LOGS / "samples_forget_made_2026-11-27T20-39-29.485112.jsonl"
INSPECT = LOGS / "inspect_forget_made.json"
ANSWERS = ["Ann sang a song", "in the old town of Oslo", "Bergen", "she wrote two novels"]
MODEL, RETAIN = ["Ann sang", "in Oslo", "no idea", "two novels"], ["no idea", "in a town", "no idea", "nothing"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Where MLflow records: one database, for it takes a second to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
        yield


def tofu_log(path, generations, answers=ANSWERS):
    rows = {
        str(index): {"rougeL_recall": 0, "input": f"question {index}", "ground_truth": answer, "generation": text}
        for index, (answer, text) in enumerate(zip(answers, generations, strict=True))
    }
    log = {name: {"agg_value": None, "value_by_index": rows} for name in ("forget_Q_A_ROUGE", "retain_Q_A_ROUGE")}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(log))
    return path


def imported(capsys, *arguments):
    assert main(["import", "--json", *map(str, arguments)]) == 0
    said = json.loads(capsys.readouterr().out)
    return said, read_results(said["run"])


@pytest.fixture
def logs(tmp_path):
    """A model's log, the retain model's, and a store."""
    npo = tofu_log(tmp_path / "npo" / "TOFU_EVAL.json", MODEL)
    retain = tofu_log(tmp_path / "retain" / "TOFU_EVAL.json", RETAIN)
    return npo, retain, tmp_path / "store"


def rouge(answers):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [scorer.score(truth, text)["rougeL"].recall for truth, text in zip(ANSWERS, answers, strict=True)]


def test_a_log_is_a_run_of_one_greedy_answer_a_prompt(logs, capsys):
    npo, retain, store = logs
    _, results = imported(capsys, npo, "--retain", retain, "--store", store)
    model, curve = results.models["npo"], results.models["npo"].curve("forget")
    leak, baseline = sum(rouge(MODEL)) / 4, sum(rouge(RETAIN)) / 4
    assert (curve.k, curve.decoding, curve.samples) == ([1], "greedy", 1)
    assert curve.leak == pytest.approx([leak])
    assert curve.excess == pytest.approx([leak - baseline])
    assert curve.low[0] < leak < curve.high[0] <= curve.bound[0]
    assert model.greedy["forget"] == model.greedy["retain"] == model.utility == pytest.approx(leak)
    assert model.metrics["rouge.forget"] == pytest.approx(leak)
    assert "nothing was sampled here" in model.notes[0]


def test_questions_of_tofus_sets_are_known_by_author(tmp_path, capsys):
    log = tofu_log(tmp_path / "npo" / "TOFU_EVAL.json", MODEL * 10, ANSWERS * 10)
    _, results = imported(capsys, log, "--store", tmp_path / "store")
    assert results.benchmark == {"name": "tofu", "split": "forget01"}
    assert results.models["npo"].curve("forget").clusters == 2
    assert results.clusters["forget01/20"] == "author1"


def test_an_imported_run_is_taken_by_report_compare_export_and_mlflow(database, logs, tmp_path, capsys):
    npo, retain, store = logs
    said, results = imported(capsys, npo, "--retain", retain, "--store", store)
    other = tofu_log(tmp_path / "simnpo" / "TOFU_EVAL.json", RETAIN[:3] + MODEL[3:])
    more, _ = imported(capsys, other, "--retain", retain, "--store", store)
    assert main(["report", said["run"]]) == 0
    assert "Nothing was sampled" in capsys.readouterr().out
    assert main(["compare", said["run"], more["run"], "--out", str(tmp_path / "compare"), "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in comparison["models"]] == ["retain", "simnpo", "npo"]
    assert comparison["models"][2]["paired"]
    assert main(["export", said["run"], "--format", "open-unlearning", "--out", str(tmp_path / "out")]) == 0
    log = json.loads((tmp_path / "out" / "npo" / "TOFU_EVAL.json").read_text())
    assert [row["generation"] for row in log["forget_Q_A_ROUGE"]["value_by_index"].values()] == MODEL
    assert record(results, Path(said["run"]), store)


def test_repeats_of_lm_evaluation_harness_are_samples(database, tmp_path, capsys):
    said, results = imported(capsys, SAMPLES, "--store", tmp_path, "--name", "dummy", "--metric", "exact_fact")
    assert said["metrics"] == said["stated"] == {"exact_match,none": 0.5}
    curve = results.models["dummy"].curve("forget")
    assert (curve.k, curve.samples, curve.decoding, curve.leak) == ([1, 2], 3, "T1-p1", [0.5, 0.5])
    assert results.benchmark == {"name": "forget_made"}
    assert main(["report", said["run"]]) == 0  # without greedy answers and utility
    assert record(results, Path(said["run"]), tmp_path)  # under a name that MLflow takes


def test_samples_that_are_likelihoods_have_figures_and_make_no_run(tmp_path, capsys):
    row = json.loads(SAMPLES.read_text().splitlines()[0]) | {"resps": [[[-1.5, False]], [[-2.5, False]]], "target": 0}
    (tmp_path / "samples_x.jsonl").write_text(json.dumps(row))
    assert main(["import", str(tmp_path / "samples_x.jsonl"), "--json", "--store", str(tmp_path / "store")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["metrics"], said["run"]) == ({"exact_match,none": 0.0}, None)
    assert said["stated"] == {"exact_match,none": None}
    assert not (tmp_path / "store").exists()


@pytest.fixture
def inspect_reader(monkeypatch):
    """Inspect's reader as far as it is used: its log of attributes, made of the file's own JSON."""

    def read_eval_log(path):
        log = json.loads(Path(path).read_text(), object_hook=lambda fields: types.SimpleNamespace(**fields))
        for sample in log.samples:
            sample.metadata, sample.scores = vars(sample.metadata), vars(sample.scores)
        return log

    module = types.ModuleType("inspect_ai.log")
    module.read_eval_log = read_eval_log
    monkeypatch.setitem(sys.modules, "inspect_ai", types.ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", module)


def test_epochs_of_inspect_are_samples(inspect_reader, tmp_path, capsys):
    said, results = imported(capsys, INSPECT, "--store", tmp_path, "--name", "mock")
    assert said["metrics"]["includes.accuracy"] == pytest.approx(said["stated"]["includes.accuracy"]) == 1 / 3
    curve = results.models["mock"].curve("forget")
    said_so = [[1, 0, 1], [0, 0, 0]]  # "Ada Finch wrote it", "in Oslo", "It was Ada Finch"; "no idea" twice, "Bergen"
    assert curve.leak == pytest.approx(leak_at_k(said_so, [1, 2]).tolist())
    assert results.clusters == {"q1": "ada"}


def test_a_log_of_inspect_without_its_reader_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert main(["import", str(INSPECT), "--store", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install inspect_ai" in error
    assert error.count("\n") == 1


def test_logs_of_different_prompts_are_refused(logs, tmp_path, capsys):
    npo, _, store = logs
    other = tofu_log(tmp_path / "other" / "TOFU_EVAL.json", RETAIN, ["a", "b", "c", "d"])
    assert main(["import", str(npo), "--retain", str(other), "--store", str(store)]) == 2
    assert "not of the same prompts: 4 only in the model's" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--name", "a/b"], ["--metric", "rouge"], ["--retain", str(SAMPLES)], ["--name", "retain"]]
)
def test_what_cannot_be_is_one_line(logs, capsys, arguments):
    npo, _, store = logs
    assert main(["import", str(npo), "--store", str(store), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sample_file_that_was_cut_is_refused(tmp_path, capsys):
    path = shutil.copy(SAMPLES, tmp_path / "samples.jsonl")
    path.write_text(path.read_text()[:-40])
    assert main(["import", str(path), "--store", str(tmp_path / "store")]) == 2
    assert "not whole" in capsys.readouterr().err


def places(value, at=()):
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


@pytest.mark.parametrize("wrong", [None, [], {}, -1.5, "x", [[1]]])
@pytest.mark.parametrize("kind", ["samples.jsonl", "TOFU_EVAL.json"])
def test_a_broken_log_is_read_as_far_as_it_goes_or_refused_in_one_line(tmp_path, kind, wrong):
    if kind == "samples.jsonl":
        whole = json.loads(SAMPLES.read_text().splitlines()[0])
    else:
        whole = json.loads(tofu_log(tmp_path / "npo" / kind, MODEL).read_text())
    for place in places(whole):
        broken = json.loads(json.dumps(whole))
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        (tmp_path / kind).write_text(json.dumps(broken))
        with contextlib.suppress(UserError):  # anything else is a fault of ours
            log, _ = read_log(tmp_path / kind)
            assert all(isinstance(text, str) for item in log.items for text in item.responses), place


def test_a_log_without_answers_about_the_forget_set_has_figures_and_makes_no_run(tmp_path, capsys):
    log = json.loads(tofu_log(tmp_path / "npo" / "TOFU_EVAL.json", MODEL).read_text())
    del log["forget_Q_A_ROUGE"]
    (tmp_path / "x.json").write_text(json.dumps(log))
    assert main(["import", str(tmp_path / "x.json"), "--json", "--store", str(tmp_path / "store")]) == 0
    assert json.loads(capsys.readouterr().out)["run"] is None


def test_runs_are_compared_on_the_group_of_prompts_that_is_asked_for(tmp_path, capsys):
    runs = []
    for name, verbmem in (("one", MODEL), ("other", RETAIN)):
        entries = json.loads(tofu_log(tmp_path / name / "MUSE_EVAL.json", MODEL).read_text())
        said = json.loads(tofu_log(tmp_path / name / "MUSE_EVAL.json", verbmem).read_text())["forget_Q_A_ROUGE"]
        log = {"forget_knowmem_ROUGE": entries["forget_Q_A_ROUGE"], "forget_verbmem_ROUGE": said}
        (tmp_path / name / "MUSE_EVAL.json").write_text(json.dumps(log))
        found, results = imported(capsys, tmp_path / name / "MUSE_EVAL.json", "--store", tmp_path / "store")
        assert (results.benchmark, results.core_metric) == ({"name": "muse"}, "rouge_l_f1")
        assert results.leak_group == "forget_knowmem"
        runs.append(found["run"])
    arguments = ["compare", *runs, "--out", str(tmp_path / "compare"), "--json"]
    assert main([*arguments, "--group", "forget_verbmem"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for model, texts in zip(models, (RETAIN, MODEL), strict=True):
        f1 = [scorer.score(truth, text)["rougeL"].fmeasure for truth, text in zip(ANSWERS, texts, strict=True)]
        assert model["leak"] == pytest.approx(sum(f1) / 4)
    assert main([*arguments, "--group", "forget"]) == 2
    assert "unknown 'forget'" in capsys.readouterr().err
