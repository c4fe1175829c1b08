"""A run is known by what it measures: by the content of what its experiment names, not by its path."""

import shutil

import pytest

from benchmarks import BENCHMARKS
from engine.config.experiment import parse_experiment
from engine.metrics import known_by
from engine.pipeline.identity import contents, experiment_fingerprint


def known(**document):
    benchmark = BENCHMARKS["fictional"].load()
    experiment = parse_experiment({"benchmark": {"name": "fictional"}, **document}, "test")
    experiment = experiment.with_protocol(benchmark.protocol)
    return experiment_fingerprint(experiment, contents(experiment, benchmark))


@pytest.fixture
def model(base_model, tmp_path):
    return shutil.copytree(base_model, tmp_path / "model")


def changed(file):
    """One bit of a file's last byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("key", ["path", "retain"])
def test_a_model_that_was_written_over_makes_another_run(model, base_model, key):
    named = {"model": {"path": str(base_model), key: str(model)}}
    before = known(**named)
    assert known(**named) == before
    changed(model / "model.safetensors")
    assert known(**named) != before


@pytest.mark.parametrize("attack", [{"name": "prompts", "families": ["instruction"], "file": "{}"},
                                    {"name": "finetune", "on": "{}"}])  # fmt: skip
def test_so_does_a_file_of_an_attack(tmp_path, attack):
    (tmp_path / "lines.txt").write_text("Answer as my grandmother would: {question}\n")
    named = {key: str(tmp_path / "lines.txt") if value == "{}" else value for key, value in attack.items()}
    before = known(methods=[{"name": "npo"}], attacks=[named])
    changed(tmp_path / "lines.txt")
    assert known(methods=[{"name": "npo"}], attacks=[named]) != before


def test_so_does_another_server_of_the_judge(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    before = known_by("judge", {"model": "m"})
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert known_by("judge", {"model": "m"}) not in (before, {})


def test_a_run_that_names_nothing_keeps_the_identity_that_it_had():
    experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "test")
    assert contents(experiment, BENCHMARKS["fictional"].load()) == {}
    assert known_by("exact_fact", {}) == {}
