"""Sampler, beam search, log-probabilities and leak floor agree on every token's probability, ties of bfloat16 too."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.base import Decoding
from engine.decode.beam_search import likely_answers
from engine.decode.law import decoding_log_probs, decoding_weights, scores_and_total, tie_inputs
from engine.decode.logprobs import answer_log_probs
from engine.decode.sampler import sample
from engine.leak.bounds import leak_floor

V, EOS, PROMPT = 24, 5, [3]
GRID = [
    Decoding(temperature=temperature, top_p=top_p, top_k=top_k)
    for temperature, top_p, top_k in itertools.product((0.0, 0.4, 1.0, 1.7), (0.15, 0.5, 0.9, 1.0), (None, 1, 5, 20))
]


def tied_logits(rows: int) -> torch.Tensor:
    """bfloat16 logits [rows, V] of which several are equal in every row."""
    logits = torch.randn(rows, V, generator=torch.Generator().manual_seed(0)).mul(1.5).round(decimals=0)
    return logits.bfloat16()


class TiedModel:
    """A causal LM whose next token hangs on the last one alone, with bfloat16 logits full of ties."""

    training, device, dtype = False, torch.device("cpu"), torch.bfloat16
    config = LlamaConfig(vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    logits_VV = tied_logits(V)

    def __call__(self, input_ids, past_key_values=None, logits_to_keep=0, **_):
        logits = self.logits_VV[input_ids]
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:], past_key_values=past_key_values or Cache())


class Cache:
    def reorder_cache(self, rows):
        pass


def plainly(logits, decoding):
    """The probabilities [V] token by token: the likeliest first, of equal ones the lowest, until a limit is reached."""
    values = logits.double().numpy()
    order = sorted(range(V), key=lambda token: (-values[token], token))
    if decoding.temperature == 0:
        return np.eye(V)[order[0]]
    weights = np.exp((values - values.max()) / decoding.temperature)
    candidates = order[: decoding.top_k]
    total, kept = weights[candidates].sum(), []
    for token in candidates:
        if weights[kept].sum() >= decoding.top_p * total * (1 - 1e-12) and decoding.top_p < 1:
            break
        kept.append(token)
    probabilities = np.zeros(V)
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


@pytest.mark.parametrize("decoding", GRID, ids=str)
def test_a_score_less_the_total_is_a_log_probability(decoding):
    logits = tied_logits(6).view(2, 3, V)
    scores, total = scores_and_total(logits, decoding)
    np.testing.assert_allclose(scores.double() - total, decoding_log_probs(logits, decoding), atol=1e-12)


@pytest.mark.parametrize("decoding", GRID, ids=str)
def test_every_token_has_the_probability_that_plain_counting_gives_it(decoding):
    logits_RV = tied_logits(40)
    expected = np.array([plainly(row, decoding) for row in logits_RV])
    np.testing.assert_allclose(decoding_log_probs(logits_RV, decoding).exp(), expected, atol=1e-12)
    if not decoding.greedy:
        weights = decoding_weights(logits_RV, decoding)
        np.testing.assert_allclose(weights / weights.sum(-1, keepdim=True), expected, atol=1e-12)


@pytest.mark.parametrize("decoding", GRID, ids=str)
def test_sampler_beam_search_log_probabilities_and_floor_agree_under_ties(decoding):
    model = TiedModel()
    first, later = plainly(model.logits_VV[PROMPT[-1]], decoding), None
    every = [(), *((token,) for token in range(V) if token != EOS)]
    later = np.array([plainly(row, decoding)[EOS] for row in model.logits_VV])
    expected = np.array([first[EOS], *(first[token] * later[token] for (token,) in every[1:])])
    possible = {answer for answer, probability in zip(every, expected, strict=True) if probability > 0}

    given = answer_log_probs(model, PROMPT, every, EOS, decoding)
    np.testing.assert_allclose(np.exp(given), expected, atol=1e-12)

    beamed = likely_answers(model, [PROMPT], EOS, decoding, beams=V, max_new_tokens=2)[0]
    assert {answer.token_ids for answer in beamed} == possible
    by_tokens = dict(zip(every, given, strict=True))
    assert [answer.log_prob for answer in beamed] == pytest.approx([by_tokens[each.token_ids] for each in beamed])

    samples = sample(
        model,
        [PROMPT],
        3000,
        **decoding.model_dump(),
        max_new_tokens=2,
        prompt_ids=["a"],
        eos_token_id=EOS,
        max_rows=64,
    )[0]
    whole = [each for each in samples if each.finish == "stop"]
    assert {each.token_ids[0] for each in samples if each.token_ids} <= set(np.flatnonzero(first).tolist())
    assert {tuple(each.token_ids) for each in whole} <= possible
    assert [each.logprob for each in whole] == pytest.approx([by_tokens[tuple(each.token_ids)] for each in whole])

    floor = float(leak_floor([answer.log_prob for answer in beamed], 1)) if beamed else 0.0
    assert floor == pytest.approx(expected.sum(), abs=1e-9)
    assert len(whole) / len(samples) == pytest.approx(floor, abs=0.05)  # 5 standard errors


def test_only_cut_bfloat16_logits_have_another_fingerprint():
    full, cut = Decoding(temperature=0.7), Decoding(top_k=5)
    assert tie_inputs([full, cut], bf16=True)
    assert not tie_inputs([full, Decoding(temperature=0, top_k=5)], bf16=True)
    assert not tie_inputs([cut], bf16=False)
