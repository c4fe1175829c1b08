"""Bytes by formula against models counted, the ZeRO paper's table, and peft."""

import pytest

from engine.config.sections import TrainSection
from engine.models.size import ModelSize
from engine.pipeline.memory_model import BUCKET, GIB, LIVE, sure_memory, training_memory


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
