"""Beam search and the log-probabilities of given answers against enumeration of every answer of a tiny model."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.base import Decoding
from engine.decode.beam_search import likely_answers
from engine.decode.logprobs import answer_log_probs

VOCABULARY, EOS, PROMPT, LONGEST = 6, 0, [3, 1, 4], 4


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def stepwise(model, answer, temperature=1.0, top_p=1.0):
    """log P(answer, end) token by token with the filters of transformers."""
    from transformers.generation.logits_process import TopPLogitsWarper

    total = 0.0
    for position, token in enumerate([*answer, EOS]):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT + list(answer[:position])])).logits[:, -1].double()
        logits = TopPLogitsWarper(top_p)(None, logits / temperature)
        total += float(logits.log_softmax(-1)[0, token])
    return total


@pytest.mark.parametrize("decoding", [(1.0, 1.0), (0.7, 0.8), (1.3, 0.5)])
def test_teacher_forcing_equals_step_by_step(model, decoding):
    answers = [(1,), (2, 5), (4, 4, 1), ()]
    got = answer_log_probs(model, PROMPT, answers, EOS, Decoding(temperature=decoding[0], top_p=decoding[1]))
    assert got == pytest.approx([stepwise(model, answer, *decoding) for answer in answers], abs=1e-5)


def test_beginnings_of_one_length_sum_to_one(model):
    pairs = list(itertools.product(range(VOCABULARY), repeat=2))
    log_probs = answer_log_probs(model, PROMPT, pairs, EOS, whole=False)
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.7)])
def test_wide_beam_finds_every_answer_with_its_probability(model, temperature, top_p):
    decoding = Decoding(temperature=temperature, top_p=top_p)
    found = likely_answers(model, [PROMPT], EOS, decoding, beams=1000, max_new_tokens=LONGEST)[0]
    every = [a for length in range(LONGEST) for a in itertools.product(range(1, VOCABULARY), repeat=length)]
    log_probs = answer_log_probs(model, PROMPT, every, EOS, decoding)
    expected = {answer: p for answer, p in zip(every, log_probs, strict=True) if p > -np.inf}
    assert {answer.token_ids for answer in found} == set(expected)
    assert [answer.log_prob for answer in found] == pytest.approx([expected[a.token_ids] for a in found], abs=1e-4)
    assert [answer.log_prob for answer in found] == sorted((a.log_prob for a in found), reverse=True)


def test_narrow_beam_finds_a_part(model):
    wide = likely_answers(model, [PROMPT], EOS, beams=1000, max_new_tokens=LONGEST)[0]
    narrow = likely_answers(model, [PROMPT], EOS, beams=3, max_new_tokens=LONGEST)[0]
    assert len(narrow) < len(wide)
    assert {answer.token_ids for answer in narrow} <= {answer.token_ids for answer in wide}


def test_prompts_side_by_side_get_the_answers_that_they_get_alone(model):
    prompts = [[3, 1, 4], [2, 2, 5], [1, 5, 1]]
    options = {"decoding": Decoding(temperature=0.6), "beams": 5, "max_new_tokens": LONGEST, "least": -6.0}
    together = likely_answers(model, prompts, EOS, **options)
    for prompt, answers in zip(prompts, together, strict=True):
        alone = likely_answers(model, [prompt], EOS, **options)[0]
        assert [each.token_ids for each in answers] == [each.token_ids for each in alone]
        assert [each.log_prob for each in answers] == pytest.approx([each.log_prob for each in alone], abs=1e-5)
        assert all(each.log_prob > -6 for each in answers)


def test_any_of_several_end_tokens_ends_an_answer(model):
    one, other = (answer_log_probs(model, PROMPT, [(1,), (2, 3)], end) for end in (EOS, 5))
    both = answer_log_probs(model, PROMPT, [(1,), (2, 3)], [EOS, 5])
    assert both == pytest.approx(np.logaddexp(one, other), abs=1e-6)
    found = likely_answers(model, [PROMPT], [EOS, 5], beams=1000, max_new_tokens=3)[0]
    assert {each.token_ids: each.log_prob for each in found}[2, 3] == pytest.approx(both[1], abs=1e-5)


def test_greedy_decoding_emits_one_answer_or_none(model):
    found = likely_answers(model, [PROMPT], EOS, Decoding(temperature=0), max_new_tokens=30)[0]
    assert len(found) <= 1
    assert all(answer.log_prob == 0 for answer in found)
