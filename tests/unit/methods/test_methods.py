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


def divergence(p, q):
    """Jensen-Shannon divergence, in nats, of two distributions that may hold zeros."""

    def kl_to_middle(one):
        held = one > 0
        return float((one[held] * np.log(one[held] / ((p + q) / 2)[held])).sum())

    return kl_to_middle(p) / 2 + kl_to_middle(q) / 2


def js_to_refusals(model):
    def of_sequence(each):
        logprobs, labels, _ = log_probabilities(model, each)
        return [divergence(np.eye(V)[label], np.exp(row)) for row, label in zip(logprobs, labels, strict=True)]

    return over_tokens(of_sequence, ALTERNATE)


def js_to_reference(reference, model):
    def of_sequence(each):
        pairs = zip(log_probabilities(reference, each)[0], log_probabilities(model, each)[0], strict=True)
        return [divergence(np.exp(wanted), np.exp(found)) for wanted, found in pairs]

    return over_tokens(of_sequence, RETAIN)


def palu(reference, model, prefix, k, c=None):
    def of_answer(each):
        wanted, found = log_probabilities(reference, each)[2][:prefix], log_probabilities(model, each)[2][:prefix]
        highest = np.argsort(-wanted, axis=1)[:, :k]
        level = np.take_along_axis(wanted, highest, 1).mean(axis=1, keepdims=True) if c is None else c
        return float(((np.take_along_axis(found, highest, 1) - level) ** 2).mean())

    return float(np.mean([of_answer(each) for each in FORGET]))


def worst_case(model, beta, tau):
    """max over weights of the mean NPO loss less tau KL(weights || equal ones), by its closed form for two samples."""
    losses = -2 / beta * log_sigmoid(beta * ratios(model, FORGET, FORGET_REFERENCE))
    weights = np.exp(losses / tau) / np.exp(losses / tau).sum()
    return float(weights @ losses - tau * (weights * np.log(weights * len(weights))).sum())


def slope_of_scale(model):
    """d/dw of the mean NLL with w times the logits, by central differences."""

    def scaled(w):
        def of_sequence(each):
            rows, labels = w * log_probabilities(model, each)[2], log_probabilities(model, each)[1]
            return [np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, labels, strict=True)]

        return over_tokens(of_sequence, RETAIN)

    return (scaled(1 + 1e-5) - scaled(1 - 1e-5)) / 2e-5


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


# Methods over a base method.

WRAPPERS = ("baldro", "sam", "ilu")
PDU = {"name": "pdu", "eps": 0.5, "alpha": 1.5, "gamma": 0.1}


def test_baldros_group_is_the_samples_that_the_model_knows_best(model, reference):
    method = METHODS["baldro"](base={"name": "npo", "beta": 0.4}, variant="group", share=0.5)
    known = int(np.argmin([np.mean(token_losses(model, each)) for each in FORGET]))
    expected = -2 / 0.4 * log_sigmoid(0.4 * ratios(model, FORGET, FORGET_REFERENCE))[known]
    assert float(method.loss(model, batch(reference)).forget.detach()) == pytest.approx(expected, rel=5e-6)


def test_baldros_worst_case_lies_between_the_mean_and_the_worst_sample(model, reference):
    losses = -2 / 0.1 * log_sigmoid(0.1 * ratios(model, FORGET, FORGET_REFERENCE))
    for tau, expected in ((1e4, losses.mean()), (1e-3, losses.max())):
        found = METHODS["baldro"](tau=tau).loss(model, batch(reference)).forget
        assert float(found.detach()) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("pad_side", ["left", "right"])
@pytest.mark.parametrize("variant", ["dv", "group"])
@pytest.mark.parametrize("base", ["dpo", "jensun", "undial", "ceu", "flat", "grad_ascent"])
def test_baldro_takes_alternates_and_references_of_the_same_samples(model, reference, base, variant, pad_side):
    method = METHODS["baldro"](base={"name": base}, variant=variant, share=0.5, tau=1e-3)
    given = batch(reference, pad_side)
    each = [
        METHODS[base]()
        .loss(
            model,
            UnlearnBatch(
                retain=given.retain,
                forget=collate([FORGET[index]], PAD, [FORGET_REFERENCE[index]]),
                alternate=collate([ALTERNATE[index]], PAD, [ALTERNATE_REFERENCE[index]]),
                reference=reference,
            ),
        )
        .forget.item()
        for index in range(2)
    ]
    known = int(np.argmin([np.mean(token_losses(model, sequence)) for sequence in FORGET]))
    expected = each[known] if variant == "group" else max(each)
    assert float(method.forget_loss(model, given).detach()) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_needs_what_its_base_does_and_carries_its_state(model, reference, name):
    over = METHODS[name](base=PDU)
    own = {"sam": {"two_gradients"}}.get(name, set())
    assert over.needs == {"retain"} | own
    assert METHODS[name](base={"name": "jensun"}).needs == {"retain", "alternate", "reference_model"} | own
    assert METHODS[name].needs == METHODS["npo"].needs | own  # of the class: over its default base
    assert over.initial_state() == {"lambda": 1.5}
    held = over.next_state({"lambda": 1.5}, {"retain": 2.5}, epoch=6.0)
    assert held == {"lambda": 3.5}
    plain = dataclasses.replace(batch(reference), state=held)
    assert over.weights(held) == (0.1, 3.5)
    assert float(over.loss(model, plain).total.detach()) > 0


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("base", [{"name": "retrain"}, {"name": "task_vector"}, {"name": "rule"}, {}, {"name": "pdu"}])
def test_a_wrapper_refuses_a_base_whose_forget_loss_it_cannot_change(name, base):
    with pytest.raises(ValueError, match=r"base|eps"):
        METHODS[name](base=base)


def test_wrappers_stand_over_each_other(model, reference):
    inner = {"name": "ilu", "lambda_invariance": 0.4, "base": {"name": "baldro", "tau": 0.6, "base": {"name": "npo"}}}
    method = METHODS["sam"](rho=0.02, base=inner)
    loss = method.loss(model, batch(reference))
    assert float(loss.forget.detach()) == pytest.approx(worst_case(model, 0.1, 0.6), rel=5e-6)
    assert float(loss.retain.detach()) == pytest.approx(nll(model, RETAIN) + 0.4 * slope_of_scale(model) ** 2, rel=5e-6)
    assert METHODS["ilu"](base={"name": "sam", "rho": 0.02}).radius == method.radius == 0.02
