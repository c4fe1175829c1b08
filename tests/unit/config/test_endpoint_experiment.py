"""A model behind a server in an experiment: what is refused, and what identifies it."""

import subprocess
import sys

import pytest

from engine.cli import main
from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.pipeline.identity import experiment_fingerprint

URL = "http://127.0.0.1:9/v1"


def parsed(**changes):
    model = {"path": "m", "endpoint": URL} | changes.pop("model", {})
    return parse_experiment({"benchmark": {"name": "fictional"}, "model": model, **changes}, "e")


def test_the_url_alone_is_an_endpoint():
    assert parsed() == parsed(model={"endpoint": {"url": URL}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": None}}, "model.path: name the model"),
        ({"methods": [{"name": "npo"}]}, "evaluated only"),
        ({"model": {"finetune": {"steps": 1}}}, "evaluated only"),
        ({"model": {"endpoint": "127.0.0.1:9"}}, "not a server's URL"),
        ({"model": {"endpoint": {"url": URL, "concurency": 3}}}, "did you mean 'concurrency'"),
    ],
)
def test_mistakes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parsed(**changes)


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://host/v1?key=secret"])
def test_credentials_are_refused_and_not_repeated(url, capsys):
    assert main(["evaluate", "--endpoint", url, "--model", "m", "--benchmark", "fictional"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_how_fast_a_server_is_asked_is_no_part_of_what_is_measured():
    identity = experiment_fingerprint(parsed())
    limits = {"concurrency": 3, "retries": 1, "timeout": 9, "key_variable": "KEY"}
    assert experiment_fingerprint(parsed(model={"endpoint": {"url": URL, **limits}})) == identity
    assert experiment_fingerprint(parsed(model={"endpoint": "http://127.0.0.1:8/v1"})) != identity


def test_an_evaluation_behind_a_server_loads_no_torch():
    experiment = "{'benchmark': {'name': 'fictional'}, 'model': {'path': 'm', 'endpoint': 'http://h/v1'}}"
    code = (
        "import sys, engine.pipeline.run, engine.stages.sample_endpoint, engine.config.experiment as e; "
        f"e.parse_experiment({experiment}, 'e'); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
