"""A model folder is known by what decides results, and what cannot be used is one line before any work."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.models import source
from engine.models.source import model_source


@pytest.fixture
def folder(base_model, tmp_path):
    return shutil.copytree(base_model, tmp_path / "model")


def identity(folder):
    return model_source(str(folder)).identity


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "name",
    [
        ".cache/huggingface/download/model.safetensors.metadata",  # what the hub's client writes, with times
        ".git/index",
        "README.md",
        "LICENSE.txt",
        "pytorch_model.bin",
        "original/consolidated.safetensors",
        "figures/loss.png",
        "optimizer.pt",
        "__pycache__/modeling.cpython-311.pyc",
    ],
)
def test_what_decides_no_results_does_not_change_a_models_identity(folder, name):
    before = identity(folder)
    write(folder / name, "2026-11-27T17:00:00")
    assert identity(folder) == before


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "modeling_own.py", "merges.txt"]
)
def test_what_may_decide_results_changes_it(folder, name):
    before = identity(folder)
    write(folder / name, (folder / name).read_text() + "\n" if (folder / name).exists() else "x")
    assert identity(folder) != before


def test_a_models_own_code_makes_another_model_where_it_may_run(folder):
    def both():
        return [model_source(str(folder), trust_remote_code=trusted).identity for trusted in (False, True)]

    before = both()
    assert before[0] == before[1]  # there is none
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}))
    without, by_its_own = both()
    assert len({*before, without, by_its_own}) == 3


def test_other_weights_are_another_model(folder):
    before = identity(folder)
    weights = next(folder.glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    assert identity(folder) != before


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n"


def refused(folder):
    with pytest.raises(UserError) as caught:
        model_source(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_only_plans_with_a_model_reads_none_of_its_weights(folder, monkeypatch):
    monkeypatch.setattr(source, "kept_digests", lambda *_: pytest.fail("the weights were read"))
    assert model_source(str(folder), identified=False).path == str(folder.resolve())
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match="safetensors"):
        model_source(str(folder), identified=False)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_to_a_large_file_is_named_with_what_fetches_it(folder, name):
    (folder / name).write_text(POINTER)
    line = refused(folder)
    assert "model.path" in line
    assert name in line
    assert "git lfs pull" in line


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "no tensors"])
def test_weights_that_are_no_weights_are_refused(folder, damage):
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    if damage == "no tensors":
        header = b"{}"
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        weights.write_bytes({"cut": raw[:-100], "text": b"<html>Not found</html>", "empty": b""}[damage])
    assert "no whole safetensors weights" in refused(folder)


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    write(folder / "model.safetensors.index.json", json.dumps(index))
    assert "lacks model-00002-of-00002.safetensors" in refused(folder)


def test_weights_of_another_model_are_refused_when_they_are_loaded(folder):
    from engine.models.loading import load_model

    save_file({"other.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack .* of the model's parameters"):
        load_model(model_source(str(folder)))


def test_a_configuration_of_another_size_is_one_line(folder):
    from engine.models.loading import load_model

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": config["hidden_size"] * 2}))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_model(model_source(str(folder)))
    assert "\n" not in str(caught.value)


def test_an_adapter_is_known_by_its_scale_and_not_by_where_its_base_stands(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    from engine.models.loading import load_model

    adapter = tmp_path / "adapter"
    adapted = get_peft_model(load_model(model_source(str(folder))), LoraConfig(target_modules="all-linear"))
    adapted.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())

    def known(**changes):
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        return identity(adapter)

    here = known(base_model_name_or_path=str(folder))
    elsewhere = shutil.copytree(folder, tmp_path / "moved")
    assert known(base_model_name_or_path=str(elsewhere)) == here
    assert known(base_model_name_or_path=str(folder), lora_alpha=config["lora_alpha"] * 2) != here
    (adapter / ".cache").mkdir()
    (adapter / ".cache" / "times").write_text("now")
    assert known(base_model_name_or_path=str(folder)) == here
