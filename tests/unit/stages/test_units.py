"""Units of sampling are about a minute's work of one worker; toy models' are bounded by prompts and samples alone."""

import dataclasses

import pytest

from benchmarks.base import Decoding, Probe
from engine.models.source import model_source
from engine.stages.sample import SampleJob, unit_prompts


@pytest.mark.parametrize(
    ("n", "tokens", "weights", "on_gpu", "prompts"),
    [
        (200, 24, 140e3, False, 10),  # bounded by 2,048 samples
        (1, 24, 140e3, False, 64),  # by 64 prompts
        (32, 24, 270e6, False, 8),  # 20 x 32 samples of 24 tokens were one unit of half an hour; 8 are a step's rows
        (16, 64, 270e6, False, 16),  # a step's rows too
        (200, 200, 270e6, False, 1),
        (200, 200, 8e9, True, 3),
        (200, 200, 0.0, True, 10),  # of a model whose size is not known
    ],
)
def test_a_unit_is_a_minutes_work(n, tokens, weights, on_gpu, prompts):
    assert unit_prompts(n, tokens, weights, on_gpu) == prompts


def test_another_unit_size_is_another_stage_and_the_usual_one_is_known_as_before(base_model):
    probes = tuple(Probe(f"p{index}", "Who?", "Ada", "forget") for index in range(100))
    job = SampleJob(model_source(str(base_model)), probes, Decoding(), n=32, max_new_tokens=4)
    assert dataclasses.replace(job, prompts_a_unit=64).inputs() == job.inputs()
    slow = dataclasses.replace(job, prompts_a_unit=3)
    assert slow.inputs() != job.inputs()
    assert (job.units, slow.units) == (2, 34)
