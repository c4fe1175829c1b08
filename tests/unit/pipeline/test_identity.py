"""A run is known by what it measures: by the content of what its experiment names, not by its path."""

import dataclasses
import shutil

import pytest

from benchmarks import BENCHMARKS
from engine.config.experiment import parse_experiment
from engine.metrics import METRICS, known_by
from engine.pipeline.identity import contents, experiment_fingerprint
from engine.robustness.reading import attacks_of, reads_of
from methods import METHODS


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


@pytest.mark.parametrize("option", [{"name": "prompts", "families": ["instruction"], "file": "one.txt"},
                                    {"name": "finetune", "on": "one.txt", "label": "one"},
                                    {"name": "interpolate", "with": "model"}])  # fmt: skip
def test_so_does_what_an_attack_reads(tmp_path, monkeypatch, model, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text('{"text": "as my grandmother said: {question}"}\n')
    if option["name"] == "prompts":
        (tmp_path / "one.txt").write_text("Answer as my grandmother would: {question}\n")
    (tmp_path / "two.txt").write_text('{"text": "another"}\n')
    (tmp_path / "retain").mkdir()  # no part of an attack on the retain set
    attacks = [option, {"name": "finetune", "on": "two.txt", "label": "two"}, {"name": "finetune", "on": "retain"}]

    def read():
        experiment = parse_experiment(
            {"benchmark": {"name": "fictional"}, "methods": [{"name": "npo"}], "attacks": attacks}, "test"
        )
        benchmark = BENCHMARKS["fictional"].load()
        return reads_of(attacks_of(experiment.with_protocol(benchmark.protocol), benchmark), benchmark)

    before = read()
    assert len(before) == 2
    changed(model / "model.safetensors")
    (tmp_path / "one.txt").write_text((tmp_path / "one.txt").read_text().replace("grandmother", "grandfather"))
    after = read()
    assert sum(before[key] != after[key] for key in before) == 1


def test_so_does_another_server_of_the_judge(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    before = known_by("judge", {"model": "m"})
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert known_by("judge", {"model": "m"}) not in (before, {})


def test_so_does_another_version_of_a_method_or_of_a_metric_that_asks_a_server(monkeypatch):
    keys = {"methods": [{"name": "sam", "base": {"name": "npo"}}], "metrics": ["judge"]}
    keys |= {"metric_options": {"judge": {"model": "m"}}}
    found = {known(**keys)}
    monkeypatch.setattr(METHODS["npo"], "version", 2)
    found.add(known(**keys))
    monkeypatch.setitem(METRICS, "judge", dataclasses.replace(METRICS["judge"], version=2))
    found.add(known(**keys))
    assert len(found) == 3


def test_a_run_that_names_nothing_keeps_the_identity_that_it_had():
    experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "test")
    assert contents(experiment, BENCHMARKS["fictional"].load()) == {}
    assert known_by("exact_fact", {}) == {}
