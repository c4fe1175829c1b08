"""What the source may not do, and what may not leave it: unsafe reads, open ports, secrets, paths out of the store."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import yaml

from engine.cli import main
from engine.config.experiment import load_experiment, parse_experiment
from engine.config.sections import ModelSection
from engine.errors import UserError
from engine.models.loading import load_model
from engine.models.source import ModelSource, model_source
from engine.redact import redact
from tests.made import make_run

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("engine", "methods", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SECRET = "s3cr3t-9f2c1b"


def name_of(node):
    """Dotted name of what is called: yaml.load, torch.load."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source):
    """(line, what) of everything that reads code out of data, opens a port to all, or runs a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names] + [getattr(node, "module", None) or ""]
            found += [(node.lineno, name) for name in names if name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("0.0.0.0", "::"):
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            found += [
                (node.lineno, name)
                for wrong in (
                    name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
                    name.endswith("read_pickle"),
                    name == "torch.load" and given.get("weights_only") != "True",
                    name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False",
                    given.get("shell", "False") != "False",
                    given.get("trust_remote_code") == "True",
                    name.startswith("AutoModel")
                    and name.endswith("from_pretrained")
                    and given.get("use_safetensors") != "True",
                )
                if wrong
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_reads_code_out_of_data_or_opens_a_port_to_all(path):
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "yaml.load(x)", "torch.load(x)", "np.load(x, allow_pickle=True)",
     "run(x, shell=True)", "serve(host='0.0.0.0')", "AutoModel.from_pretrained(x)", "f(trust_remote_code=True)",
     "eval(x)"],
)  # fmt: skip
def test_the_check_itself_finds_what_it_looks_for(line):
    assert unsafe(line)


def test_remote_code_is_off_unless_the_user_says_so():
    assert ModelSection().trust_remote_code is False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:p%40w@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://host/v1?api_key=abc&n=1", "https://host/v1?api_key=***&n=1"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("mail me@host", "mail me@host"),
        (f"key {SECRET} there", "key *** there"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(monkeypatch, text, shown):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("SOME_TOKEN", "host")  # a word, too short to be a key
    assert redact(text) == shown


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"path": f"https://me:{SECRET}@hub/org/model"}},
        {"benchmark": {"name": "tofu", "path": f"https://hub/data?token={SECRET}"}},
        {"metric_options": {"judge": {"model": "m", "endpoint": f"http://me:{SECRET}@host/v1"}}},
        {"methods": [{"name": "npo", "label": "key-in-the-environment"}]},
    ],
)
def test_an_experiment_with_a_secret_in_it_is_refused_without_showing_it(tmp_path, monkeypatch, capsys, change):
    monkeypatch.setenv("MY_API_KEY", "key-in-the-environment")
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"benchmark": {"name": "fictional"}} | change))
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err
    assert "credential" in said
    assert SECRET not in said
    assert "key-in-the-environment" not in said
    assert not (tmp_path / "store").exists()


def test_a_failure_shows_no_secret(monkeypatch, capsys, tmp_path):
    from engine.commands import run

    def fail(*_):
        raise RuntimeError(f"https://me:{SECRET}@host refused")

    monkeypatch.setattr(run, "run_experiment", fail)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"benchmark": {"name": "fictional"}}))
    assert main(["run", str(tmp_path / "e.yaml")]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: https://***@host refused" in said
    assert SECRET not in said


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".hidden", "a\\b", "a\x00b", "", "a" * 81, "x\n"])
def test_a_name_that_leaves_its_folder_is_refused(name):
    good = {"name": "x", "benchmark": {"name": "fictional"}, "methods": [{"name": "npo"}]}
    for document in (good | {"name": name}, good | {"methods": [{"name": "npo", "label": name}]}):
        with pytest.raises(UserError):
            parse_experiment(document, "e.yaml")
    with pytest.raises(UserError):
        parse_experiment(good | {"benchmark": {"name": name}}, "e.yaml")


def test_yaml_tags_make_no_objects(tmp_path):
    (tmp_path / "e.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/made']\n")
    with pytest.raises(UserError, match="not YAML"):
        load_experiment(tmp_path / "e.yaml")
    assert not (tmp_path / "made").exists()


class Planted:
    """What a hostile pickle does when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "adapter_model.bin"])
def test_a_model_of_pickles_is_refused_and_none_of_them_is_read(tmp_path, base_model, name):
    folder, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(base_model, folder)
    (folder / name).write_bytes(pickle.dumps(Planted(marker)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Planted(marker)))
    load_model(model_source(str(folder)))  # safetensors beside it are what counts
    (folder / "model.safetensors").unlink()
    if name.startswith("adapter"):
        config = {"base_model_name_or_path": str(base_model), "peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no safetensors weights"):
        model_source(str(folder))
    with pytest.raises((OSError, UserError), match="safetensors"):
        load_model(ModelSource(str(folder), ""))
    assert not marker.exists()


@pytest.mark.parametrize("path", ["pandas", "."])
def test_a_data_set_of_pickles_is_refused_and_not_read(tmp_path, monkeypatch, path):
    from benchmarks.hub import load_rows

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(UserError):
        load_rows(path, None, "train", ["question"])
    assert not (tmp_path / "ran").exists()


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown(tmp_path, capsys):
    command = ["evaluate", "--model", "m", "--benchmark", "fictional", "--endpoint", "http://host/v1"]
    assert main([*command, "--key-variable", f"sk-{SECRET}", "--store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr()
    assert "environment variable" in said.err
    assert SECRET not in said.out + said.err
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run's folder below its store, of which a report can be written."""
    run = make_run(tmp_path_factory.mktemp("store"), "mine", {("npo", "unlearned"): [["a"] * 4] * 2}, ["a", "b"])
    assert main(["report", str(run)]) == 0
    return run


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"leak_group": "/etc/x"},
        {"models": {"name": "../../x"}},
        {"models": {"stages": {"model": "/m", "generations T1-p1": "../../elsewhere"}}},
        {"models": {"stages": {"model": "/m", "scores T1-p1 exact_fact": "/elsewhere"}}},
        {"curves": {"group": "../../x"}},
        {"curves": {"decoding": "a/b"}},
    ],
)
def test_results_whose_names_lead_out_of_their_folder_are_refused(tmp_path, capsys, reported, change):
    shutil.copytree(reported.parents[1], tmp_path / "store")
    run = tmp_path / "store" / "runs" / reported.name
    raw = json.loads((run / "results.json").read_text())
    model = raw["models"][0]
    model |= change.pop("models", {})
    model["curves"][0] |= change.pop("curves", {})
    (run / "results.json").write_text(json.dumps(raw | change))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["report", str(run)]) == 2
    assert "not a results file" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
