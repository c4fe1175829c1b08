"""Each loss equals its paper's formula, worked out here from the logits in float64."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.data import Encoded, collate
from methods import METHODS
from methods.base import UnlearnBatch

V, PAD = 23, 1  # the padding id is the end-of-text id, as in Llama-3's usual set-up
FORGET = [Encoded([3, 4, 5, 6, 7, PAD], [-100, -100, 5, 6, 7, PAD]), Encoded([8, 9, PAD], [-100, 9, PAD])]
RETAIN = [Encoded([10, 11, 12, PAD], [-100, 11, 12, PAD]), Encoded([13, 14, 15, 16, PAD], [-100, -100, 15, 16, PAD])]
REFERENCE = [-7.5, -3.25]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(config).double().eval()


def batch(pad_side="right"):
    return UnlearnBatch(
        forget=collate(FORGET, PAD, REFERENCE, pad_side=pad_side), retain=collate(RETAIN, PAD, pad_side=pad_side)
    )


def token_losses(model, encoded):
    """Cross-entropy of each labelled token of one unpadded sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([encoded.input_ids])).logits[0].numpy()
    losses = []
    for position, label in enumerate(encoded.labels):
        if label != -100:
            row = logits[position - 1]
            losses.append(float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]))
    return losses


def nll(model, sequences):
    return float(np.mean([loss for each in sequences for loss in token_losses(model, each)]))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def npo(model, beta):
    sums = np.array([sum(token_losses(model, each)) for each in FORGET])
    return -2 / beta * np.mean(log_sigmoid(beta * (sums - -np.array(REFERENCE))))


def simnpo(model, beta, delta):
    means = np.array([np.mean(token_losses(model, each)) for each in FORGET])
    return -2 / beta * np.mean(log_sigmoid(beta * means - delta))


EXPECTED = {
    "grad_ascent": ({}, lambda m: -nll(m, FORGET)),
    "grad_diff": ({"gamma": 0.3, "alpha": 2.0}, lambda m: -0.3 * nll(m, FORGET) + 2 * nll(m, RETAIN)),
    "npo": ({"beta": 0.4, "gamma": 0.7, "alpha": 1.5}, lambda m: 0.7 * npo(m, 0.4) + 1.5 * nll(m, RETAIN)),
    "simnpo": (
        {"beta": 2.5, "delta": 0.5, "gamma": 0.25, "alpha": 1.5},
        lambda m: 0.25 * simnpo(m, 2.5, 0.5) + 1.5 * nll(m, RETAIN),
    ),
    "retrain": ({}, lambda m: nll(m, RETAIN)),
}


@pytest.mark.parametrize("pad_side", ["left", "right"])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_loss_is_its_formula(model, name, pad_side):
    hyperparameters, expected = EXPECTED[name]
    loss = METHODS[name](**hyperparameters).loss(model, batch(pad_side))
    # token losses are float32 by design (a model may be bf16), so the agreement is float32's
    assert float(loss.total.detach()) == pytest.approx(expected(model), rel=2e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_gradient_is_the_losss_slope(model, name):
    method = METHODS[name](**EXPECTED[name][0])
    weights = model.model.layers[0].mlp.down_proj.weight
    model.zero_grad()
    method.loss(model, batch()).total.backward()
    for index in [(0, 0), (3, 7), (15, 23)]:
        step, values = 1e-2, []
        for sign in (1, -1):
            with torch.no_grad():
                weights[index] += sign * step
            values.append(EXPECTED[name][1](model))
            with torch.no_grad():
                weights[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(weights.grad[index]) == pytest.approx(slope, rel=1e-2, abs=1e-6)


def test_npo_needs_one_number_a_sequence_and_no_second_model():
    assert METHODS["npo"].needs == {"retain", "reference_logprob"}


@pytest.mark.parametrize("name", EXPECTED)
def test_weighted_micro_batches_add_up_to_the_whole(model, name):
    import dataclasses

    method = METHODS[name](**EXPECTED[name][0])
    whole = float(method.loss(model, batch()).total.detach())

    def part(encoded, reference=None):
        labelled = sum(label != -100 for label in encoded.labels)
        mean = sum(label != -100 for each in (FORGET if encoded in FORGET else RETAIN) for label in each.labels) / 2
        return dataclasses.replace(collate([encoded], PAD, reference), weight=labelled / mean)

    parts = [
        UnlearnBatch(forget=part(FORGET[index], [REFERENCE[index]]), retain=part(RETAIN[index])) for index in range(2)
    ]
    assert np.mean([float(method.loss(model, each).total.detach()) for each in parts]) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("base", [{"name": "rule"}, {"name": "nope"}, {}, {"name": "npo", "beta": -1}])
def test_rule_refuses_a_base_that_no_loss_trains(base):
    with pytest.raises(ValueError, match=r"base|beta"):
        METHODS["rule"](base=base)
