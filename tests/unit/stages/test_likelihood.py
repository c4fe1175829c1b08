"""Likelihoods of answers are those of a plain forward pass over each sequence alone."""

import json
import math

import pytest
import torch

from benchmarks.base import Example
from engine.cluster.units import COUNTS
from engine.models.chat_template import stop_token_ids
from engine.models.loading import cached_model
from engine.models.source import model_source
from engine.models.tokenization import IGNORED, encode_example
from engine.stages.likelihood import LikelihoodJob, token_likelihoods


@pytest.fixture(scope="module")
def loaded(base_model):
    return cached_model(model_source(str(base_model)), "cpu", "fp32")


@pytest.fixture(scope="module")
def examples(fictional):
    texts = [Example("text", "", "the harbour of ash")]  # running text: no question, no end token
    return tuple(fictional.forget[:40:4]) + tuple(texts)


@pytest.fixture(scope="module")
def found(base_model, loaded, examples):
    job = LikelihoodJob(model_source(str(base_model)), examples, gradients=frozenset({examples[3].id}))
    return token_likelihoods(*loaded, examples, job)


def test_every_number_equals_a_plain_forward_pass(loaded, examples, found):
    model, tokenizer = loaded
    for example, row in zip(examples, found, strict=True):
        encoded = encode_example(tokenizer, example.question, example.answer)
        ids, labels = torch.tensor([encoded.input_ids]), encoded.labels
        with torch.inference_mode():
            p = model(ids).logits[0].double().softmax(-1)
        labelled = [t for t in range(1, len(labels)) if labels[t] != IGNORED]
        logprobs = [math.log(p[t - 1, labels[t]]) for t in labelled]
        assert row.nll == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)
        text = [t for t in labelled if labels[t] not in stop_token_ids(tokenizer)]
        assert row.token_ids == [labels[t] for t in text]
        assert row.argmax == [int(p[t - 1].argmax()) for t in text]
        assert row.logprobs == pytest.approx(logprobs[: len(text)], rel=1e-5)
        for place, t in enumerate(text):
            surprise = p[t - 1].log()
            mean = float((p[t - 1] * surprise).sum())
            assert row.means[place] == pytest.approx(mean, rel=1e-5)
            variance = float((p[t - 1] * surprise**2).sum()) - mean**2
            assert row.stds[place] == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-4)


def test_answers_end_with_a_token_that_is_no_part_of_the_text(loaded, examples, found):
    _, tokenizer = loaded
    answer = tokenizer.decode(found[0].token_ids)
    assert answer == examples[0].answer
    assert tokenizer.decode(found[-1].token_ids) == "harbour of ash"  # nothing precedes the first token


def test_the_gradient_norm_is_taken_where_it_is_asked_for(found):
    assert [index for index, row in enumerate(found) if row.gradient_norm is not None] == [3]
    assert found[3].gradient_norm > 0


def test_texts_that_are_cut_are_counted(base_model, loaded, examples):
    lengths = [len(encode_example(loaded[1], each.question, each.answer).input_ids) for each in examples]
    limit = sorted(lengths)[len(lengths) // 2]
    for asked, held, expected in ((limit, None, limit), (4096, limit, limit), (4096, None, None)):
        job = LikelihoodJob(model_source(str(base_model)), examples, max_length=asked)
        model, context = loaded[0], loaded[0].config.max_position_embeddings
        model.config.max_position_embeddings = held or context
        try:
            table, _ = job.compute(0)
        finally:
            model.config.max_position_embeddings = context
        cut = json.loads(table.schema.metadata[COUNTS.encode()])["truncated"]
        assert cut == (sum(length > expected for length in lengths) if expected else 0)


def test_what_a_model_says_does_not_depend_on_the_company(base_model, loaded, examples, found):
    for index in (0, len(examples) - 1):
        alone = token_likelihoods(
            *loaded, examples[index : index + 1], LikelihoodJob(model_source(str(base_model)), ())
        )
        assert alone[0].nll == pytest.approx(found[index].nll, rel=1e-6)


def test_units_are_cut_by_work_and_hold_every_example_once_in_order(base_model):
    examples = tuple(Example(str(index), "q", "a") for index in range(700))
    plain = LikelihoodJob(model_source(str(base_model)), examples)
    assert [each.stop - each.start for each in plain.slices()] == [256, 256, 188]
    costly = LikelihoodJob(plain.model, examples, gradients=frozenset(str(index) for index in range(100)))
    assert [index for each in costly.slices() for index in range(each.start, each.stop)] == list(range(700))
    assert [each.stop - each.start for each in costly.slices()][:4] == [32, 32, 32, 228]
