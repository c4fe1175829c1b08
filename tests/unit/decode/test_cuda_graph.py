"""A step in buffers that never move gives what a step in a growing cache gives, and never waits for the device."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.decode import cuda_graph, sampler
from engine.decode.kv_cache import KVRows
from engine.decode.sampler import sample
from tests.unit.decode.test_sampler import CONFIGS, EOS, IDS, PROMPTS, make

STEPS = 8
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def used(monkeypatch):
    """Fixed caches of 32 rows on the CPU, where nothing is captured; those made, and the rows of their steps."""
    made, steps = [], []

    def make_fixed(model, like, rows, length):
        made.append(cuda_graph.FixedRows(model, like, 32, length, capture=False))
        return made[-1]

    step = cuda_graph.FixedRows.step
    monkeypatch.setattr(sampler, "fixed_rows", make_fixed)
    monkeypatch.setattr(
        cuda_graph.FixedRows, "step", lambda self, *rows: steps.append(len(rows[0])) or step(self, *rows)
    )
    return made, steps


def draw(model, n, **changes):
    options = {"max_new_tokens": STEPS, "prompt_ids": IDS, "eos_token_id": EOS, "seed": 3} | changes
    return sample(model, PROMPTS, n, **options)


def near(drawn, expected):
    for mine, theirs in zip(drawn, expected, strict=True):
        assert [each.token_ids for each in mine] == [each.token_ids for each in theirs]
        np.testing.assert_allclose([each.logprob for each in mine], [each.logprob for each in theirs], atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_samples_the_same_from_a_fixed_cache(name, used, monkeypatch):
    model = make(CONFIGS[name], spread=4.0)
    found = draw(model, 3)
    made, steps = used
    assert len(made) == 1
    assert max(steps) > 5
    monkeypatch.setattr(sampler, "fixed_rows", lambda *_: None)
    near(found, draw(model, 3))


@pytest.mark.parametrize("rows", [16, 48, None])
def test_rows_move_in_and_out_of_the_fixed_cache_as_they_split_and_vanish(rows, used, monkeypatch):
    model = make(CONFIGS["llama grouped tied"], spread=8.0)
    forward, shapes = model.forward, []
    monkeypatch.setattr(model, "forward", lambda **given: shapes.append(given["input_ids"].shape) or forward(**given))
    options = {"max_rows": rows, "max_new_tokens": 12, "eos_token_id": [1, 2, 3, 4, 5, 6]}
    found = draw(model, 30, **options)
    assert 0 < max(used[1]) <= 32
    assert (max(count for count, length in shapes if length == 1) > 32) == (rows != 16)  # at times too many for it
    monkeypatch.setattr(sampler, "fixed_rows", lambda *_: None)
    near(found, draw(model, 30, **options))


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a number back from the device, or makes a tensor as long as what it finds there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), (
            function
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fixed_step_never_waits_for_the_device_so_that_it_can_be_captured(name, used):
    model = make(CONFIGS[name])
    draw(model, 2)
    made = used[0][0]
    with torch.inference_mode(), NoWaiting():
        made._forward(16)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        bool(torch.ones(1)[0])


def test_on_a_cpu_or_several_devices_there_is_no_fixed_cache():
    model = make(CONFIGS["llama"])
    cache = KVRows()
    model(torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    assert cuda_graph.fixed_rows(model, cache, 64, 16) is None


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_captured_step_samples_as_the_plain_one(name, monkeypatch, recwarn):
    model = make(CONFIGS[name], spread=4.0).to("cuda")
    found = draw(model, 20)
    assert not [each for each in recwarn if "CUDA graph" in str(each.message)]
    monkeypatch.setattr(sampler, "fixed_rows", lambda *_: None)
    near(found, draw(model, 20))
