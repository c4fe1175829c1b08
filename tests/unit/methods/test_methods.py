"""Each loss equals its paper's formula, worked out here from the logits in float64, and its gradient is its slope."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.tokenization import Encoded, collate
from methods import METHODS
from methods.base import UnlearnBatch

V, PAD = 23, 1  # the padding id is the end-of-text id, as in Llama-3's usual set-up
FORGET = [Encoded([3, 4, 5, 6, 7, PAD], [-100, -100, 5, 6, 7, PAD]), Encoded([8, 9, PAD], [-100, 9, PAD])]
RETAIN = [Encoded([10, 11, 12, PAD], [-100, 11, 12, PAD]), Encoded([13, 14, 15, 16, PAD], [-100, -100, 15, 16, PAD])]
ALTERNATE = [Encoded([3, 4, 17, PAD], [-100, -100, 17, PAD]), Encoded([8, 18, 19, PAD], [-100, 18, 19, PAD])]
FORGET_REFERENCE, ALTERNATE_REFERENCE = [-7.5, -3.25], [-5.0, -9.5]
C, LAYER, SEED = 3.0, 0, 5


def tiny(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config.initializer_range = 0.3  # wide enough for distributions that are far from uniform
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def model():
    return tiny(0)


@pytest.fixture(scope="module")
def reference():
    return tiny(1)


def batch(reference, pad_side="right"):
    return UnlearnBatch(
        forget=collate(FORGET, PAD, FORGET_REFERENCE, pad_side=pad_side),
        retain=collate(RETAIN, PAD, pad_side=pad_side),
        alternate=collate(ALTERNATE, PAD, ALTERNATE_REFERENCE, pad_side=pad_side),
        reference=reference,
    )


# The truth: one unpadded sequence at a time, numpy in float64.


def log_probabilities(model, encoded):
    """[(log-softmax over the vocabulary, label), ...] of the labelled tokens of one sequence, and the bare logits."""
    with torch.no_grad():
        logits = model(torch.tensor([encoded.input_ids])).logits[0].numpy()
    positions = [position for position, label in enumerate(encoded.labels) if label != -100]
    rows = logits[[position - 1 for position in positions]]
    peak = rows.max(axis=1, keepdims=True)
    logprobs = rows - peak - np.log(np.exp(rows - peak).sum(axis=1, keepdims=True))
    return logprobs, [encoded.labels[position] for position in positions], rows


def token_losses(model, encoded):
    logprobs, labels, _ = log_probabilities(model, encoded)
    return [-float(row[label]) for row, label in zip(logprobs, labels, strict=True)]


def over_tokens(function, sequences):
    """Mean of function(sequence) -> values of its labelled tokens, over all of them."""
    return float(np.mean([value for each in sequences for value in function(each)]))


def nll(model, sequences):
    return over_tokens(lambda each: token_losses(model, each), sequences)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def ratios(model, sequences, references):
    return np.array([sum(token_losses(model, each)) for each in sequences]) + np.array(references)


def npo(model, beta):
    return -2 / beta * np.mean(log_sigmoid(beta * ratios(model, FORGET, FORGET_REFERENCE)))


def simnpo(model, beta, delta):
    means = np.array([np.mean(token_losses(model, each)) for each in FORGET])
    return -2 / beta * np.mean(log_sigmoid(beta * means - delta))


def dpo(model, beta):
    log_p = [np.array([-sum(token_losses(model, each)) for each in of_set]) for of_set in (ALTERNATE, FORGET)]
    win, lose = log_p[0] - ALTERNATE_REFERENCE, log_p[1] - FORGET_REFERENCE
    return -2 / beta * np.mean(log_sigmoid(beta * (win - lose)))


def weighted(model, weight):
    return over_tokens(lambda each: [weight(np.exp(-loss)) * loss for loss in token_losses(model, each)], FORGET)


def kl(reference, model):
    def of_sequence(each):
        p, q = log_probabilities(reference, each)[0], log_probabilities(model, each)[0]
        return (np.exp(p) * (p - q)).sum(axis=1)

    return over_tokens(of_sequence, RETAIN)


def undial(reference, model, beta):
    def of_sequence(each):
        wanted, (logprobs, labels, _) = log_probabilities(reference, each)[2], log_probabilities(model, each)
        for row, label in zip(wanted, labels, strict=True):
            row[label] -= beta
        wanted = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
        return -(wanted * logprobs).sum(axis=1)

    return over_tokens(of_sequence, FORGET)


def ceu(constant, model):
    """constant: the model whose distribution is the goal; it is the model itself, held where it was."""

    def of_sequence(each):
        wanted, (logprobs, labels, _) = np.exp(log_probabilities(constant, each)[0]), log_probabilities(model, each)
        for row, label in zip(wanted, labels, strict=True):
            row[label] = 0
        wanted /= wanted.sum(axis=1, keepdims=True)
        return -(wanted * logprobs).sum(axis=1)[1:]

    return over_tokens(of_sequence, FORGET)


def peaks(model):
    return over_tokens(
        lambda each: [(row.max() - row.mean()) ** 2 for row in log_probabilities(model, each)[2]], FORGET
    )


def entropy(model, sequences):
    return over_tokens(
        lambda each: [-(np.exp(row) * row).sum() for row in log_probabilities(model, each)[0]], sequences
    )


def flat(model, activation, conjugate):
    forget, alternate = (
        np.array([np.mean(np.exp(-np.array(token_losses(model, each)))) for each in of_set])
        for of_set in (FORGET, ALTERNATE)
    )
    return float(np.mean(conjugate(activation(forget))) - np.mean(activation(alternate)))


def activations(model, sequences):
    """Output of decoder layer LAYER at the labelled tokens of every sequence, [tokens, hidden]."""
    found = []
    for each in sequences:
        with torch.no_grad():
            hidden = model(torch.tensor([each.input_ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
        found.append(hidden.numpy()[np.array(each.labels) != -100])
    return np.concatenate(found)


def rmu(reference, model, gamma, alpha):
    u = torch.rand(16, generator=torch.Generator().manual_seed(SEED)).double().numpy()
    forget = np.mean((activations(model, FORGET) - C * u / np.linalg.norm(u)) ** 2)
    retain = np.mean((activations(model, RETAIN) - activations(reference, RETAIN)) ** 2)
    return gamma * forget + alpha * retain


# name: hyperparameters, formula(reference model, constant, model); `constant` is the model before any step, for weights
# through which no gradient flows.
EXPECTED = {
    "grad_ascent": ({}, lambda r, c, m: -nll(m, FORGET)),
    "grad_diff": ({"gamma": 0.3, "alpha": 2.0}, lambda r, c, m: -0.3 * nll(m, FORGET) + 2 * nll(m, RETAIN)),
    "kl_min": ({"gamma": 0.3, "alpha": 2.0}, lambda r, c, m: -0.3 * nll(m, FORGET) + 2 * kl(r, m)),
    "npo": ({"beta": 0.4, "gamma": 0.7, "alpha": 1.5}, lambda r, c, m: 0.7 * npo(m, 0.4) + 1.5 * nll(m, RETAIN)),
    "blur_npo": ({"beta": 0.4, "gamma": 0.7, "alpha": 1.5}, lambda r, c, m: 0.7 * npo(m, 0.4) + 1.5 * nll(m, RETAIN)),
    "simnpo": (
        {"beta": 2.5, "delta": 0.5, "gamma": 0.25, "alpha": 1.5},
        lambda r, c, m: 0.25 * simnpo(m, 2.5, 0.5) + 1.5 * nll(m, RETAIN),
    ),
    "dpo": ({"beta": 0.4, "gamma": 0.7, "alpha": 1.5}, lambda r, c, m: 0.7 * dpo(m, 0.4) + 1.5 * nll(m, RETAIN)),
    "idk_dpo": ({"beta": 0.2}, lambda r, c, m: dpo(m, 0.2) + nll(m, RETAIN)),
    "altpo": ({"beta": 0.2}, lambda r, c, m: dpo(m, 0.2) + nll(m, RETAIN)),
    "idk_nll": ({"gamma": 0.5, "alpha": 3.0}, lambda r, c, m: 0.5 * nll(m, ALTERNATE) + 3 * nll(m, RETAIN)),
    "rmu": ({"layer": LAYER, "c": C, "seed": SEED, "gamma": 2.0, "alpha": 0.5}, lambda r, c, m: rmu(r, m, 2.0, 0.5)),
    "undial": (
        {"beta": 3.0, "gamma": 0.5, "alpha": 2.0},
        lambda r, c, m: 0.5 * undial(r, m, 3.0) + 2 * nll(m, RETAIN),
    ),
    "wga": (
        {"beta": 0.7, "gamma": 0.5, "alpha": 2.0},
        lambda r, c, m: -0.5 * weighted(m, lambda p: p**0.7) + 2 * nll(m, RETAIN),
    ),
    "satimp": (
        {"b1": 2.0, "b2": 0.5, "gamma": 0.4, "alpha": 2.0},
        lambda r, c, m: -0.4 * weighted(m, lambda p: p**2 * (1 - p) ** 0.5) + 2 * nll(m, RETAIN),
    ),
    "ceu": ({}, lambda r, c, m: ceu(c, m)),
    "pdu": (
        {"eps": 0.5, "alpha": 1.5, "gamma": 0.1},
        lambda r, c, m: 0.1 * peaks(m) + 1.5 * (nll(m, RETAIN) - 0.5),
    ),
    "npo_ent": (
        {"beta": 0.4, "lambda_forget": 0.8, "lambda_retain": -0.3},
        lambda r, c, m: npo(m, 0.4) + nll(m, RETAIN) + 0.8 * entropy(m, FORGET) - 0.3 * entropy(m, RETAIN),
    ),
    "flat": ({}, lambda r, c, m: flat(m, lambda v: v, lambda u: np.exp(u - 1))),
    "task_vector": ({}, lambda r, c, m: nll(m, FORGET)),
    "retrain": ({}, lambda r, c, m: nll(m, RETAIN)),
}


def slope_expected(name, reference, constant, model):
    """The formula as the gradient sees it: weights that are held constant come from `constant`."""
    if name not in ("wga", "satimp"):
        return EXPECTED[name][1](reference, constant, model)
    weight, share = {"wga": (lambda p: p**0.7, 0.5), "satimp": (lambda p: p**2 * (1 - p) ** 0.5, 0.4)}[name]
    pairs = [
        (np.exp(-held), loss)
        for each in FORGET
        for held, loss in zip(token_losses(constant, each), token_losses(model, each), strict=True)
    ]
    return -share * float(np.mean([weight(p) * loss for p, loss in pairs])) + 2 * nll(model, RETAIN)


def test_every_method_that_a_loss_trains_is_checked_here():
    assert set(EXPECTED) == set(METHODS) - {"rule"}


@pytest.mark.parametrize("pad_side", ["left", "right"])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_loss_is_its_formula(model, reference, name, pad_side):
    hyperparameters, expected = EXPECTED[name]
    loss = METHODS[name](**hyperparameters).loss(model, batch(reference, pad_side))
    # token losses are float32 by design (a model may be bf16), so the agreement is float32's
    assert float(loss.total.detach()) == pytest.approx(expected(reference, model, model), rel=5e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_gradient_is_the_losss_slope(model, reference, name):
    method = METHODS[name](**EXPECTED[name][0])
    moved = tiny(0)
    weights = moved.model.layers[0].mlp.down_proj.weight
    method.loss(moved, batch(reference)).total.backward()
    for index in [(0, 0), (3, 7), (15, 23)]:
        # Llama normalises in float32: smaller steps drown in its rounding
        step, values = 2e-2, []
        for sign in (1, -1):
            with torch.no_grad():
                weights[index] += sign * step
                values.append(slope_expected(name, reference, model, moved))
                weights[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(weights.grad[index]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_weighted_micro_batches_add_up_to_the_whole(model, reference, name):
    method = METHODS[name](**EXPECTED[name][0])
    whole = float(method.loss(model, batch(reference)).total.detach())

    def part(sequences, index, references=None):
        labelled = [sum(label != -100 for label in each.labels) for each in sequences]
        alone = collate([sequences[index]], PAD, references and [references[index]])
        return dataclasses.replace(alone, weight=labelled[index] / np.mean(labelled))

    parts = [
        UnlearnBatch(
            forget=part(FORGET, index, FORGET_REFERENCE),
            retain=part(RETAIN, index),
            alternate=part(ALTERNATE, index, ALTERNATE_REFERENCE),
            reference=reference,
        )
        for index in range(2)
    ]
    assert np.mean([float(method.loss(model, each).total.detach()) for each in parts]) == pytest.approx(whole, rel=1e-5)


DIVERGENCES = {
    "total_variation": (lambda v: np.tanh(v) / 2, lambda u: u),
    "jensen_shannon": (lambda v: np.log(2 / (1 + np.exp(-v))), lambda u: -np.log(2 - np.exp(u))),
    "pearson": (lambda v: v, lambda u: u**2 / 4 + u),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_flat_takes_the_other_divergences_too(model, reference, divergence):
    loss = METHODS["flat"](divergence=divergence).loss(model, batch(reference))
    assert float(loss.total.detach()) == pytest.approx(flat(model, *DIVERGENCES[divergence]), rel=5e-6)


@pytest.mark.parametrize("base", [{"name": "rule"}, {"name": "nope"}, {}, {"name": "npo", "beta": -1}])
def test_rule_refuses_a_base_that_no_loss_trains(base):
    with pytest.raises(ValueError, match=r"base|beta"):
        METHODS["rule"](base=base)
