"""Queries that share keys, taken together, attend as each alone does."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig
from transformers.cache_utils import DynamicCache

from engine.models.attention import group_queries, ungroup_queries

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def ungrouped():
    yield
    ungroup_queries()


def made(config, attention):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention).eval()


def after(model, prompt, steps):
    """Logits of each of the steps, one token a step, after a prompt [R, T]."""
    cache, found = DynamicCache(config=model.config), []
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        for step in range(steps):
            found.append(model(torch.full((len(prompt), 1), step), past_key_values=cache).logits)
    return torch.stack(found)


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Gemma3TextConfig(**SIZES, sliding_window=5)], ids=type)
def test_logits_of_a_step_are_those_of_plain_attention(config):
    prompt = torch.arange(12).view(3, 4)
    model = made(config, "sdpa")
    expected, before = after(made(config, "eager"), prompt, 4), after(model, prompt, 4)
    group_queries()
    assert model.config._attn_implementation == "sdpa"  # some models look at the name
    torch.testing.assert_close(after(model, prompt, 4), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after(model, prompt, 4), before, rtol=1e-5, atol=1e-6)


def test_queries_that_share_keys_are_one_matrix(monkeypatch):
    model, shapes = made(LlamaConfig(**SIZES), "sdpa"), []
    group_queries()
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, value, **options):
        shapes.append(tuple(query.shape))
        return plain(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    after(model, torch.arange(12).view(3, 4), 1)
    assert shapes == [(3, 4, 4, 8)] * 2 + [(3, 2, 2, 8)] * 2
