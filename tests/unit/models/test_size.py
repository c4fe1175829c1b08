"""Sizes by formula and from files, against models counted and peft."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.lora import LoraSection
from engine.models.size import model_size, parameters_of, size_of, stored_parameters
from engine.models.source import ModelSource
from methods.base import TokenBatch
from methods.rmu import hidden_states

SHAPES = [
    {"num_key_value_heads": 4, "tie_word_embeddings": True},
    {"num_key_value_heads": 2, "tie_word_embeddings": False},
    {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True},
]


def llama(**changes):
    shape = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
    config = LlamaConfig(**shape | {"num_attention_heads": 4} | changes)
    with torch.device("meta"):
        return config, LlamaForCausalLM(config)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_model(shape):
    config, model = llama(**shape)
    assert size_of(config.to_dict()).parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_loss_of_a_layers_output_reaches_what_gets_gradients(layer, tied):
    config, _ = llama(tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    batch = TokenBatch(*(torch.ones(2, 5, dtype=torch.long) for _ in range(3)))
    hidden_states(model, batch, layer).sum().backward()
    reached = sum(each.numel() for each in model.parameters() if each.grad is not None)
    assert size_of(config.to_dict()).reached(layer + 1) == reached
    assert size_of(config.to_dict()).reached(None) == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_adapter_parameters_are_pefts(targets):
    from engine.models.lora import with_adapter

    config, model = llama(num_key_value_heads=2)
    lora = LoraSection(rank=8, targets=targets)
    adapted = with_adapter(model, lora, "x", None, 0)
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert size_of(config.to_dict()).adapter(lora) == trained


def test_a_folders_parameters_are_counted_from_its_files(base_model):
    from safetensors.torch import load_file

    counted = sum(each.numel() for each in load_file(base_model / "model.safetensors").values())
    assert stored_parameters(base_model) == counted
    size = model_size(ModelSource(str(base_model), ""))
    assert (size.parameters, size.layers, size.hidden) == (counted, 2, 64)


def test_a_model_that_does_not_say_its_size_has_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_size(ModelSource(str(tmp_path), "")) is None
    assert parameters_of(ModelSource(str(tmp_path), "")) == 0


def test_the_model_of_a_stage_is_counted_by_its_manifest_where_its_files_are_elsewhere(base_model, tmp_path):
    whole = ModelSource(str(base_model), "")
    size = (base_model / "model.safetensors").stat().st_size
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model/model.safetensors": {"bytes": size}}}))
    found = parameters_of(ModelSource(str(tmp_path / "model"), ""))
    assert found == pytest.approx(parameters_of(whole), rel=0.1)
    assert parameters_of(whole) == stored_parameters(base_model)


def test_a_model_of_the_hub_is_counted_by_its_configuration(monkeypatch, tmp_path):
    config, model = llama(num_key_value_heads=2)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: tmp_path / "config.json")
    found = parameters_of(ModelSource("org/counted", "", "c1"))
    assert found == sum(each.numel() for each in model.parameters())
