"""What methods are tested with, and the truth: each loss from one sequence's logits at a time, unpadded, in float64."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.tokenization import Encoded, collate
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


def batch(reference, pad_side="right"):
    return UnlearnBatch(
        forget=collate(FORGET, PAD, FORGET_REFERENCE, pad_side=pad_side),
        retain=collate(RETAIN, PAD, pad_side=pad_side),
        alternate=collate(ALTERNATE, PAD, ALTERNATE_REFERENCE, pad_side=pad_side),
        reference=reference,
    )


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
