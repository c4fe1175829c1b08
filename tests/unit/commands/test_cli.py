"""The command line: quick help, exit codes, and one line for a mistake."""

import json
import statistics
import subprocess
import sys
import time

import pytest
import yaml

from engine.cli import COMMANDS, main
from engine.reporting.results import read_results
from tests.made import make_run

GOOD = {"name": "x", "benchmark": {"name": "fictional"}, "methods": [{"name": "npo"}]}


def refused(capsys, *arguments):
    """The one line that a wrong command line prints."""
    assert main([str(each) for each in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("leakatk: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_answers_within_a_second_and_imports_nothing_heavy():
    seconds = []
    for _ in range(5):
        clock = time.monotonic()
        run = subprocess.run([sys.executable, "-m", "engine", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - clock)
    assert statistics.median(seconds) < 1
    assert all(command in run.stdout for command in COMMANDS)
    heavy = (
        "import sys, engine.cli; engine.cli.build_parser('run'); print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys):
    assert "did you mean 'demo'" in refused(capsys, "dmo")


@pytest.mark.parametrize(
    "command", ["compare", "report", "export", "check", "verify", "audit", "run", "leak", "import"]
)
def test_a_path_that_no_file_system_takes_is_one_line(capsys, command):
    assert "too long" in refused(capsys, command, "a" * 300)


def test_an_unknown_flag_is_refused(capsys):
    assert "--sed" in refused(capsys, "demo", "--sed", "3")


def test_demo_refuses_unknown_methods(capsys):
    assert "did you mean 'simnpo'" in refused(capsys, "demo", "--methods", "simpno")


def test_the_demo_can_be_asked_for_every_method():
    from engine.commands.demo import demo_document
    from engine.config.experiment import parse_experiment
    from methods import METHODS

    asked = parse_experiment(demo_document(0, everything=True), "the demo")
    assert {each.name for each in asked.methods} == set(METHODS)


def test_a_store_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(GOOD))
    assert "not writable" in refused(capsys, "run", tmp_path / "e.yaml", "--store", tmp_path / "file" / "s")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer", "weights"])
def test_a_model_folder_that_is_not_whole_is_refused(tmp_path, base_model, capsys, missing):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(base_model, model)
    patterns = {"config.json": "config.json", "tokenizer": "*token*", "weights": "*.safetensors"}
    for path in model.glob(patterns[missing]):
        path.unlink()
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(GOOD | {"model": {"path": str(model), "finetune": {"steps": 1}}}))
    line = refused(capsys, "run", tmp_path / "e.yaml", "--store", tmp_path / "store")
    assert "model.path" in line
    assert missing.split(".")[0][:5] in line
    assert not list((tmp_path / "store").glob("*/*"))


def test_retraining_without_a_pretrained_model_is_refused(tmp_path, base_model, capsys):
    document = GOOD | {"model": {"path": str(base_model)}, "methods": [{"name": "retrain"}]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    assert "model.retain" in refused(capsys, "run", tmp_path / "e.yaml", "--store", tmp_path / "store")


def test_scores_of_foreign_generations_feed_the_leak_curve(tmp_path, capsys):
    generations, scores = tmp_path / "g.jsonl", tmp_path / "s.jsonl"
    rows = [
        {"prompt_id": "a", "prompt": "q", "reference": "red fox", "responses": ["a red fox", "no", "no", "no"]},
        {"prompt": "q", "ground_truth": "blue hare", "responses": [{"response": "no"}] * 4},
        {"prompt": "q", "ground_truth": "blue hare", "responses": [{"response": "blue hare"}] * 4},
    ]
    generations.write_text("\n".join(["{broken", *map(json.dumps, rows)]))
    assert main(["score", str(generations), "--metric", "exact_fact", "--out", str(scores), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"prompts": 3, "samples": 12, "failed": 0, "failures": {}, "malformed": 1}
    assert "line 1 left out" in captured.err
    assert main(["leak", str(scores), "--k", "1,2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["leak"] == pytest.approx([(1 / 4 + 0 + 1) / 3, (1 / 2 + 0 + 1) / 3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "empty"), ("[]\n", "expected an object"), ('{"reference": "a"}\n', "responses"), ("\xff\n", "line 1")],
)
def test_a_file_without_generations_is_refused_and_leaves_nothing(tmp_path, capsys, text, expected):
    (tmp_path / "g.jsonl").write_bytes(text.encode("latin-1"))
    out = tmp_path / "s.jsonl"
    assert expected in refused(capsys, "score", tmp_path / "g.jsonl", "--metric", "exact_fact", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["g.jsonl"]


def test_what_ray_prints_of_killed_workers_does_not_mix_with_the_result(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "store", "mine", {("npo", "unlearned"): [["a"] * 4] * 2}, ["a", "b"], retain=None)
    results = read_results(run)

    def noisy(*_, **__):
        print("(raylet) A worker died")
        return results

    monkeypatch.setattr("engine.pipeline.finish.run", noisy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"benchmark": {"name": "fictional"}}))
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["models"][0]["name"] == "npo"
    assert "(raylet)" in said.err
