"""Bytes by formula against models counted, the ZeRO paper's table, and peft."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config.sections import TrainSection
from engine.models.lora import LoraSection
from engine.models.source import ModelSource
from engine.pipeline.memory_model import (
    BUCKET,
    GIB,
    LIVE,
    ModelSize,
    model_size,
    size_of,
    stored_parameters,
    sure_memory,
    training_memory,
)
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


@pytest.mark.parametrize(("stage", "paper"), [(1, 31.4e9), (2, 16.6e9), (3, 1.9e9)])
def test_states_under_zero_are_the_papers(stage, paper):
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 devices, bytes a device of 2 + 2 + 12 a parameter."""
    size = ModelSize(int(7.5e9), 1, 1, 1, 1, 1, 1)
    settings = TrainSection(workers=64, batch_size=64, zero_stage=stage, precision="bf16", max_length=1)
    memory = training_memory(size, settings)
    buffers = 2 * (BUCKET if stage < 3 else LIVE)  # DeepSpeed's, beside the states
    assert memory.weights + memory.gradients + memory.optimizer - buffers == pytest.approx(paper, rel=0.02)


def test_one_worker_in_float32_holds_sixteen_bytes_a_parameter():
    memory = training_memory(ModelSize(1000, 1, 1, 1, 1, 1, 1), TrainSection(batch_size=1, max_length=1))
    assert memory.whole - memory.activations == 16_000


def test_offload_moves_what_it_says_and_no_byte_more():
    size = ModelSize(10**9, 1, 1, 1, 1, 1, 1)
    common = {"workers": 2, "batch_size": 2, "zero_stage": 3, "precision": "bf16"}
    whole = training_memory(size, TrainSection(**common))
    optimizer = training_memory(size, TrainSection(**common, offload="optimizer"))
    parameters = training_memory(size, TrainSection(**common, offload="parameters"))
    assert whole.offloaded == 0
    assert optimizer.offloaded == whole.optimizer == 6e9
    assert parameters.offloaded == whole.optimizer + 1e9  # and the worker's half of the bfloat16 weights
    assert whole.whole == optimizer.whole == parameters.whole


def test_two_trainings_that_fit_alone_are_known_not_to_fit_together():
    """Gemma-3-270M with AdamW in float32, on a machine of 8 GiB: weights, gradients and two moments alone."""
    gemma = ModelSize(268_098_176, 18, 640, 2048, 1024, 256, 262_144)
    sure = sure_memory(gemma, TrainSection())
    assert 16 * gemma.parameters < sure < 8 * GIB < 2 * sure
    assert sure_memory(gemma, TrainSection(), reference=True) == sure + 4 * gemma.parameters
    assert sure_memory(None, TrainSection()) == 0.0
