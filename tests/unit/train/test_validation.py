"""A look at a model in training compares its answers with what the evaluation will compare them with."""

import pytest

from engine.config.sections import TrainSection
from engine.models.loading import load_model
from engine.models.source import model_source
from engine.models.tokenization import load_tokenizer
from engine.train.job import TrainJob
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
