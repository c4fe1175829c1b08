"""Attacks on weights, against their definitions worked out number by number."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import UserError
from engine.models.loading import load_model
from engine.models.source import model_source
from engine.robustness.attacks.interpolate import Interpolate
from engine.robustness.attacks.prune import Prune
from engine.robustness.attacks.quantize import NF4_LEVELS, Quantize
from engine.robustness.weights import linear_weights


@pytest.fixture
def weight():
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (24, 96)).astype(np.float32))


@pytest.fixture
def model(base_model):
    return load_model(model_source(str(base_model)))


def test_nf4_takes_the_nearest_of_16_levels_of_each_block(weight):
    rounded = Quantize(scheme="nf4", block=32).rounded(weight).numpy().reshape(-1, 32)
    for block, given in zip(rounded, weight.numpy().reshape(-1, 32), strict=True):
        levels = np.array(NF4_LEVELS, dtype=np.float32) * np.abs(given).max()
        nearest = levels[np.abs(given[:, None] - levels).argmin(axis=1)]
        np.testing.assert_array_equal(block, nearest)


def test_nf4_levels_are_the_papers_quantiles_of_the_normal_distribution():
    """Eight from 0 up and eight from 0 down, evenly spaced in probability to an offset, scaled to end at 1 (QLoRA,
    arXiv 2305.14314, and its authors' create_normal_map)."""
    normal, offset = NormalDist(), 0.9677083
    up = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    down = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.array(sorted([*down, 0.0, *up])) / max(up)
    np.testing.assert_allclose(NF4_LEVELS, expected, atol=1e-6)


def test_nf4_of_a_size_that_blocks_do_not_divide():
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    rounded = Quantize(scheme="nf4", block=8).rounded(weight)
    assert rounded.shape == weight.shape
    assert torch.equal(rounded.abs().max(), weight.abs().max())  # the largest of a block is kept


def test_int8_is_whole_multiples_of_a_scale_for_each_row(weight):
    rounded = Quantize(scheme="int8").rounded(weight).numpy()
    for row, given in zip(rounded, weight.numpy(), strict=True):
        scale = np.abs(given).max() / 127
        steps = row / scale
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert np.abs(row - given).max() <= scale / 2 * 1.02


def test_int4_has_16_evenly_spaced_levels_in_each_group(weight):
    rounded = Quantize(scheme="int4", block=32).rounded(weight).numpy().reshape(-1, 32)
    for group, given in zip(rounded, weight.numpy().reshape(-1, 32), strict=True):
        step = (max(given.max(), 0) - min(given.min(), 0)) / 15
        whole = group / step
        np.testing.assert_allclose(whole, np.round(whole), atol=1e-3)
        assert len(np.unique(np.round(whole))) <= 16
        assert np.abs(group - given).max() <= step * 0.51 + step / 2  # the zero point is rounded too


def test_the_output_head_stays_whole_and_every_other_linear_layer_changes(model):
    head = model.get_output_embeddings().weight.detach().clone()
    before = {name: weight.clone() for name, weight in linear_weights(model).items()}
    Quantize(scheme="nf4").change(model, None)
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert before
    assert all(not torch.equal(weight, before[name]) for name, weight in linear_weights(model).items())


def test_pruning_zeroes_the_smallest_share_and_nothing_else(model):
    before = {name: weight.clone() for name, weight in linear_weights(model).items()}
    Prune(sparsity=0.3).change(model, None)
    for name, weight in linear_weights(model).items():
        given, kept = before[name].abs(), weight != 0
        assert int((~kept).sum()) == round(0.3 * given.numel())
        assert given[~kept].max() <= given[kept].min()
        assert torch.equal(weight[kept], before[name][kept])


def test_layers_of_other_kinds_are_rounded_along_their_inputs():
    """GPT-2's layers hold [in, out]; a mixture's experts stand in one tensor."""
    shape = {"vocab_size": 11, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", hidden_size=8, n_inner=12, **shape))
    layer = gpt2.transformer.h[0].mlp.c_fc.weight
    given = layer.detach().clone()
    Quantize(scheme="int8").change(gpt2, None)
    for row, before in zip(layer.detach().T, given.T, strict=True):
        whole = row / (before.abs().max() / 127)
        torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    experts = {"hidden_size": 8, "intermediate_size": 12, "num_local_experts": 3, "num_key_value_heads": 2}
    mixture = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **experts, **shape))
    before = {name: each.detach().clone() for name, each in mixture.named_parameters() if "experts" in name}
    assert before
    Prune(sparsity=0.5).change(mixture, None)
    for name, each in before.items():
        assert int((mixture.get_parameter(name) == 0).sum()) == round(0.5 * each.numel())


def test_a_model_without_linear_layers_is_refused_in_one_line():
    class Nothing(torch.nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(UserError, match="no linear layers"):
        Quantize().change(Nothing(), None)


def test_interpolation_is_exact(model, base_model):
    other = load_model(model_source(str(base_model)))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    before = {name: each.detach().double() for name, each in model.named_parameters()}
    Interpolate(alpha=0.25).change(model, other)
    for name, parameter in model.named_parameters():
        expected = 0.75 * before[name] + 0.25 * (before[name] + 1.0)
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=1e-6)


def test_interpolation_with_another_architecture_is_refused_in_one_line(model):
    with pytest.raises(UserError, match="another architecture"):
        Interpolate(alpha=0.5).change(model, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("scheme", "label"), [("nf4", "quantize-nf4"), ("int8", "quantize-int8")])
def test_the_label_says_the_scheme(scheme, label):
    assert Quantize(scheme=scheme).title == label
