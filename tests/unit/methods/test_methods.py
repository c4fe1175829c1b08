"""Each loss equals its paper's formula, and its gradient is its slope."""

import dataclasses

import numpy as np
import pytest
import torch

from engine.models.tokenization import collate
from methods import METHODS
from methods.base import UnlearnBatch
from tests.unit.methods.formulas import (
    ALTERNATE,
    ALTERNATE_REFERENCE,
    FORGET,
    FORGET_REFERENCE,
    LAYER,
    PAD,
    RETAIN,
    SEED,
    C,
    V,
    batch,
    ceu,
    dpo,
    entropy,
    flat,
    js_to_reference,
    js_to_refusals,
    kl,
    nll,
    npo,
    palu,
    peaks,
    rmu,
    simnpo,
    slope_of_scale,
    tiny,
    token_losses,
    undial,
    weighted,
    worst_case,
)

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
    "jensun": (
        {"gamma": 0.7, "alpha": 1.5},
        lambda r, c, m: 0.7 * js_to_refusals(m) + 1.5 * js_to_reference(r, m),
    ),
    "palu": (
        {"prefix": 3, "k": 5, "gamma": 0.3, "alpha": 2.0},
        lambda r, c, m: 0.3 * palu(r, m, 3, 5) + 2 * nll(m, RETAIN),
    ),
    "task_vector": ({}, lambda r, c, m: nll(m, FORGET)),
    "baldro": (
        {"base": {"name": "npo", "beta": 0.4, "gamma": 0.7, "alpha": 1.5}, "tau": 0.6},
        lambda r, c, m: 0.7 * worst_case(m, 0.4, 0.6) + 1.5 * nll(m, RETAIN),
    ),
    "sam": (
        {"base": {"name": "simnpo", "beta": 2.5, "gamma": 0.25, "alpha": 1.5}},
        lambda r, c, m: 0.25 * simnpo(m, 2.5, 0) + 1.5 * nll(m, RETAIN),
    ),
    "ilu": (
        {"base": {"name": "grad_diff", "gamma": 0.3, "alpha": 2.0}, "lambda_invariance": 0.4},
        lambda r, c, m: -0.3 * nll(m, FORGET) + 2 * (nll(m, RETAIN) + 0.4 * slope_of_scale(m) ** 2),
    ),
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


# What these change is by the micro-batch: the weights of its samples, the slope on its part of the retain set.
BY_MICRO_BATCH = {"baldro", "ilu"}


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - BY_MICRO_BATCH))
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


def test_palu_flattens_to_a_given_level_too(model, reference):
    loss = METHODS["palu"](prefix=2, k=4, c=-1.5).loss(model, batch(reference))
    assert float(loss.forget.detach()) == pytest.approx(palu(reference, model, 2, 4, -1.5), rel=5e-6)


def test_palu_flattens_no_more_logits_than_there_are(model, reference):
    losses = [METHODS["palu"](k=k).loss(model, batch(reference)).total.detach() for k in (V, 50)]
    assert float(losses[0]) == float(losses[1])


def test_jensun_is_bounded_by_log_2_a_token(model):
    far = tiny(2)
    with torch.no_grad():
        far.lm_head.weight *= 50  # as sure as can be, and of other tokens
    loss = METHODS["jensun"]().loss(far, batch(model))
    assert np.log(2) / 2 < float(loss.forget.detach()) <= np.log(2) + 1e-6
    assert 0 < float(loss.retain.detach()) <= np.log(2) + 1e-6
