"""Adaptive sampling raises every prompt's samples until leak@k is known to the wanted half-width, or no more may be
drawn. Truth: simulated models whose chance to leak on each prompt is known."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.base import Decoding
from engine.config.experiment import Experiment
from engine.evaluation import sampling
from engine.evaluation.jobs import sample_job
from engine.evaluation.sampling import Subject, further_samples, sample_model
from engine.leak.estimator import leak_at_k
from engine.leak.variance import sampling_half_width
from engine.models.source import ModelSource
from engine.store.store import FinishedStage

K = 16


@pytest.fixture
def simulated(fictional, monkeypatch, tmp_path):
    """sample(chances, ...): the scores [prompts, samples] that a model with these chances to leak is sampled to, by
    `sampling.adaptive`, and the samples of each round."""

    def sample(chances, half_width=0.05, pilot=4, most=4096, n=8):
        adaptive = {"half_width": half_width, "pilot": pilot, "max_samples": most}
        settings = {
            "benchmark": {"name": "fictional"},
            "sampling": {"n": n, "decoding": [{}], "adaptive": adaptive},
            "leak": {"k": [1, K]},
        }
        experiment = Experiment.model_validate(settings).with_protocol(fictional.protocol)
        drawn, seeds = [], []

        def draw(jobs, works):
            for job, work in zip(jobs, works, strict=True):
                drawn.append(job.n)
                seeds.append(job.seed)
                (work / "units").mkdir(parents=True)
                leaks = np.random.default_rng(job.seed % 2**32).random((len(chances), job.n)) < chances[:, None]
                prompts, samples = np.indices(leaks.shape).reshape(2, -1)
                table = {
                    "prompt_id": [f"p{each}" for each in prompts],
                    "group": ["forget"] * leaks.size,
                    "sample": samples,
                    "score": leaks.ravel().astype(float),
                }
                pyarrow.parquet.write_table(pyarrow.table(table), work / "units" / "000000.parquet")

        class Runner:
            def run_together(self, label, jobs, fill):
                works = [tmp_path / f"{label.replace(' ', '-')}-{len(drawn)}" for _ in jobs]
                draw(jobs, works)
                return [FinishedStage(work, {"facts": {"tokens": 0, "seconds": 0.0}}, False) for work in works]

        monkeypatch.setattr(sampling, "score", lambda stages, experiment, label, generations, metric: generations)
        found, _ = sample_model(Subject(Runner(), experiment, fictional, ModelSource("m", "m"), "m"))
        assert len(set(seeds[:-1])) == len(seeds) - 1  # each round has samples of its own; the last is greedy
        return found.scores("exact_fact")["forget"].scores, drawn[:-1]

    return sample


def test_samples_are_raised_until_the_half_width_is_reached_and_no_longer(simulated):
    chances = np.random.default_rng(1).beta(0.3, 6, size=40)
    scores, rounds = simulated(chances)
    assert rounds[0] == K + 1
    assert all(rounds[at] <= sum(rounds[:at]) for at in range(1, len(rounds)))
    assert scores.shape == (40, sum(rounds))
    assert sampling_half_width(scores, K) <= 0.05 < sampling_half_width(scores[:, : sum(rounds[:-1])], K)
    truth = (1 - (1 - chances) ** K).mean()
    assert leak_at_k(scores, [K])[0] == pytest.approx(truth, abs=2 * 0.05)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_model_that_always_or_never_leaks_takes_the_pilot_alone(simulated, chance):
    assert simulated(np.full(12, chance), pilot=30)[1] == [30]


@pytest.mark.parametrize(
    ("width", "more"), [(0.024, 44), (0.05, 100), (np.nan, 100), (0.0201, 13)], ids=["part", "most", "unknown", "least"]
)
def test_a_round_draws_what_the_half_width_at_hand_asks_for(width, more):
    assert further_samples(100, width, 0.02) == more


def test_no_more_than_the_most_are_drawn(simulated):
    scores, rounds = simulated(np.full(3, 0.05), half_width=0.001, most=100)
    assert scores.shape[1] == sum(rounds) == 100


def test_a_pilot_has_one_sample_more_than_the_largest_k(fictional):
    settings = {"benchmark": {"name": "fictional"}, "sampling": {"adaptive": {}}, "leak": {"k": [4, 64]}}
    experiment = Experiment.model_validate(settings).with_protocol(fictional.protocol)
    assert sample_job(experiment, fictional, ModelSource("m", "m"), Decoding()).n == 65
