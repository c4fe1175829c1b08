"""A look at a model in training compares its answers with what the evaluation will compare them with, and a training
without one does not depend on how it would look."""

import dataclasses

import pytest

from engine.config.sections import TrainSection
from engine.models.loading import load_model
from engine.models.source import model_source
from engine.models.tokenization import load_tokenizer
from engine.train.job import TrainJob
from engine.train.launch import Training
from engine.train.validation import watch


@pytest.mark.parametrize(("metric", "truth"), [("exact_fact", "fact"), ("rouge_l_recall", "reference")])
def test_answers_are_compared_with_the_fact_only_where_the_metric_reads_facts(
    base_model, fictional, monkeypatch, metric, truth
):
    probes = tuple(fictional.group("forget")[:4])
    compared = []

    def score(name, responses, references, prompts, **options):
        compared.extend(references)
        return [1.0] * len(responses)

    monkeypatch.setattr("engine.metrics.score", score)
    source = model_source(str(base_model))
    job = TrainJob(source, {"name": "npo"}, TrainSection(), (), watch=probes, watch_metric=metric, watch_tokens=2)
    assert watch(load_model(source), load_tokenizer(source.path), job, 1) == {"greedy": 1.0}
    assert compared == [getattr(probe, truth) for probe in probes]


def test_a_training_depends_on_how_it_is_looked_at_only_where_it_is(base_model, fictional):
    unseen = TrainJob(model_source(str(base_model)), {"name": "retrain"}, TrainSection(), ())
    seen = dataclasses.replace(unseen, watch=tuple(fictional.group("forget")[:4]))
    for job, depends in ((unseen, False), (seen, True)):
        for change in ({"watch_tokens": 64}, {"watch_metric": "rouge_l_recall"}, {"watch_options": {"threshold": 0.5}}):
            changed = dataclasses.replace(job, **change)
            assert (Training(changed).inputs() != Training(job).inputs()) == depends
