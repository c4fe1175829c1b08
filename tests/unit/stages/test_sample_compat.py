"""Sampling as the code released with the leak@k paper does it: from prompts that lost their turn marks."""

import dataclasses

from benchmarks.base import Decoding
from engine.config.experiment import parse_experiment
from engine.decode.sampler import sample
from engine.evaluation.jobs import sample_job
from engine.models.loading import cached_model
from engine.models.source import model_source
from engine.stages.sample import sample_probes


def test_compat_samples_from_the_words_alone_and_only_when_asked(fictional, base_model):
    source = model_source(str(base_model))
    model, tokenizer = cached_model(source, "cpu", "fp32")
    document = {"benchmark": {"name": "fictional"}, "sampling": {"n": 3, "max_new_tokens": 5}}
    experiment = parse_experiment(document, "file").with_protocol(fictional.protocol)
    asked = parse_experiment(document | {"sampling": {**document["sampling"], "compat": "leak-k"}}, "file")
    asked = asked.with_protocol(fictional.protocol)
    proper, compat = (sample_job(each, fictional, source, each.sampling.decoding[0]) for each in (experiment, asked))
    assert compat.decoding == Decoding(top_k=50)
    assert proper == dataclasses.replace(compat, retokenise=False, decoding=Decoding())

    probe = fictional.probes[0]
    words = tokenizer(probe.prompt)["input_ids"]  # without <q> and <a>, which the chat template writes
    expected = sample(
        model, [words], 3, max_new_tokens=5, top_k=50, prompt_ids=[probe.id], eos_token_id=tokenizer.eos_token_id
    )
    assert sample_probes(model, tokenizer, (probe,), compat) == expected
    assert sample_probes(model, tokenizer, (probe,), proper) != expected
