"""Which engine samples: the one that is named, or with `auto` the one that suits the model."""

import json
import struct

import pytest

from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.models import size
from engine.models.source import ModelSource
from engine.pipeline import sampling_engine
from engine.pipeline.identity import experiment_fingerprint
from engine.stages import sample_vllm


def experiment(**sampling):
    document = {"name": "x", "benchmark": {"name": "fictional"}, "model": {"path": "org/m"}, "sampling": sampling}
    return parse_experiment(document, "x.yaml")


def test_without_vllm_asking_for_it_is_one_line(monkeypatch):
    def missing(name):
        raise sample_vllm.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sample_vllm.metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'leakatk\[vllm\]'"):
        sampling_engine.with_engine(experiment(engine="vllm"), on_gpus=True)


@pytest.mark.parametrize(
    ("installed", "on_gpus", "layers", "expected"),
    [
        (False, True, 80, ("exact", "vLLM is not installed")),
        (True, False, 80, ("exact", "there is no GPU")),
        (True, True, 2, ("exact", "the model has 1.7 billion weights, vLLM is taken from 3 billion on")),
        (True, True, 80, ("vllm", "the model has 18.7 billion weights")),
    ],
)
def test_auto_takes_vllm_for_a_large_model_on_gpus(monkeypatch, tmp_path, installed, on_gpus, layers, expected):
    """By its configuration, as a model of the hub has it here."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_hidden_layers": layers, "vocab_size": 300_000, **shape}))
    monkeypatch.setattr(sample_vllm, "installed", lambda: installed)
    monkeypatch.setattr(sampling_engine, "model_source", lambda path, *_, **__: ModelSource(path, ""))
    monkeypatch.setattr(size, "_config_file", lambda source: config)
    assert sampling_engine.engine_of(experiment(engine="auto"), on_gpus) == expected


def test_gpus_share_a_model_under_vllm_alone():
    with pytest.raises(UserError, match="tensor_parallel: GPUs share a model under engine: vllm alone"):
        experiment(tensor_parallel=2)


def test_runs_by_the_exact_sampler_keep_the_identity_that_they_had_before_there_was_a_choice():
    plain = experiment().on_devices(0.0, fast_bf16=True)
    assert experiment_fingerprint(plain) == experiment_fingerprint(
        experiment(engine="exact", precision="fp32", cpus=4).on_devices(0.0, fast_bf16=True)
    )
    others = [{"engine": "vllm"}, {"precision": "bf16"}, {"precision": "auto"}]
    for each in others:
        changed = experiment(**each).on_devices(0.0, fast_bf16=True)
        assert experiment_fingerprint(plain) != experiment_fingerprint(changed)


def test_the_size_of_a_model_is_read_from_its_files(tmp_path, monkeypatch):
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(sample_vllm, "installed", lambda: True)
    asked = experiment(engine="auto").model_copy(
        update={"model": experiment().model.model_copy(update={"path": str(tmp_path)})}
    )
    engine, why = sampling_engine.engine_of(asked, on_gpus=True)
    assert engine == "exact"
    assert "0.0 billion weights" in why
