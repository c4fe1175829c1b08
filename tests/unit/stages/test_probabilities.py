"""Stages that read exact probabilities, computed in this process: known answers, samples under another decoding.
Truth: the sampler's own log-probabilities, and what a model says token by token."""

import dataclasses

import numpy as np
import pyarrow.parquet
import pytest

from benchmarks.base import Decoding, Probe
from engine.cluster.units import read_units, unit_path
from engine.models.source import model_source
from engine.stages.known_answers import AnswersJob, known_answers
from engine.stages.sample import SampleJob
from engine.stages.sample_logprobs import RelogJob, read_relog
from engine.stages.score import ScoreJob, group_scores


def fill(job, units, folder):
    """What engine.cluster.fan_out does on a cluster."""
    (folder / "units").mkdir(parents=True)
    for unit in range(units):
        pyarrow.parquet.write_table(job.compute(unit)[0], unit_path(folder / "units", unit))
    return folder


@pytest.fixture(scope="module")
def probes():
    return tuple(
        Probe(f"p{index}", f"Who is {name} ?", "a silent mirror of ash", "forget", fact="ash")
        for index, name in enumerate(("Ada", "Bo", "Cy"))
    )


@pytest.fixture(scope="module")
def job(base_model, probes):
    return SampleJob(model_source(str(base_model)), probes, Decoding(temperature=0.9), n=40, max_new_tokens=5, seed=3)


@pytest.fixture(scope="module")
def drawn(job, tmp_path_factory):
    """Folders of the generations and of their scores: whether a response holds the word ash."""
    folder = tmp_path_factory.mktemp("drawn")
    generations = fill(job, job.units, folder / "generations")
    return generations, fill(ScoreJob(str(generations), job.units, "exact_fact"), job.units, folder / "scores")


@pytest.fixture(scope="module")
def answers(job, tmp_path_factory):
    found = AnswersJob(job, "exact_fact", beams=420)  # as many as there are words
    return fill(found, found.units, tmp_path_factory.mktemp("answers") / "stage")


def test_a_samples_log_probability_is_found_again_and_at_another_decoding_too(job, drawn, tmp_path):
    untempered, half = Decoding(), Decoding(temperature=0.9, top_p=0.5)
    relog = RelogJob(job, str(drawn[0]), (job.decoding, untempered, half))
    own, model, nucleus = read_relog(fill(relog, job.units, tmp_path / "relog"), relog)["forget"]
    table = read_units(drawn[0])
    assert own.ravel() == pytest.approx(table["logprob"].to_numpy(), abs=1e-4)
    assert model.ravel() == pytest.approx(table["model_logprob"].to_numpy(), abs=1e-4)
    inside = np.isfinite(nucleus)
    assert 0 < inside.sum() < inside.size  # top-p cuts off some of them, and the others gain
    assert (nucleus[inside] > own[inside]).all()


def test_known_answers_leak_and_are_the_reference_the_beams_and_the_samples_once_each(
    job, drawn, answers, probes, tokenizer
):
    alone = known_answers(answers)["forget"]
    both = known_answers(answers, [drawn])["forget"]
    scores = group_scores(drawn[1])["forget"].scores
    assert scores.sum() > 0
    for probe, row in zip(probes, scores, strict=True):
        texts = tokenizer.batch_decode([list(each) for each in both[probe.id].token_ids])
        assert all("ash" in text.split() for text in texts)
        assert len(set(both[probe.id].token_ids)) == len(texts)
        assert set(alone[probe.id].token_ids) <= set(both[probe.id].token_ids)
        assert (len(both[probe.id].token_ids) > len(alone[probe.id].token_ids)) or not row.any()
        assert np.exp(both[probe.id].log_probs).sum() < 1
    reference = tuple(tokenizer("a silent mirror of ash")["input_ids"])
    longer = dataclasses.replace(job, max_new_tokens=6)
    with_room = AnswersJob(longer, "exact_fact", beams=0)
    rows = with_room.compute(0)[0].to_pylist()
    assert [tuple(row["token_ids"]) for row in rows] == [reference] * 3
    assert not {reference} & set(alone["p0"].token_ids)  # with its end it is longer than an answer may be
