"""One loop for one worker and for many: the same losses, the same model, whatever is killed."""

import dataclasses
import json
import os
import signal
import sys

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from benchmarks.base import Example
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.errors import DivergedError, InterruptedTrainingError
from engine.models.source import model_source
from engine.train.job import TrainJob
from engine.train.launch import run_training


@pytest.fixture(scope="module")
def job(base_model, fictional):
    settings = TrainSection(
        steps=6, batch_size=8, retain_batch_size=12, lr=3e-3, weight_decay=0.0, warmup=0.0, checkpoint_every=2
    )
    return TrainJob(
        model_source(str(base_model)),
        {"name": "grad_diff", "gamma": 0.1},
        settings,
        retain=tuple(fictional.retain[:50]),
        forget=tuple(fictional.forget[:20]),
    )


def trained(job, folder, report=None, /, **changes):
    folder.mkdir()
    facts = run_training(changed(job, **changes), folder, report or Silent())
    losses = [step["total"] for step in json.loads((folder / "history.json").read_text())]
    return facts, losses, load_file(folder / "model" / "model.safetensors")


def test_accumulated_micro_batches_equal_the_large_batch(job, tmp_path):
    _, whole, weights = trained(job, tmp_path / "whole")
    _, parts, accumulated = trained(job, tmp_path / "parts", micro_batch_size=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(accumulated[name], value, atol=1e-4)


def test_the_stop_rule_ends_training_early(job, fictional, tmp_path):
    watch = tuple(fictional.group("forget")[:4])
    stopping = dataclasses.replace(job, watch=watch, watch_tokens=8)
    facts, losses, _ = trained(stopping, tmp_path / "stopped", stop_at_greedy=0.05, eval_every=2)
    assert facts["steps"] == 2  # the untrained model knows nothing: the first look ends it
    assert len(losses) == 2


def test_training_stops_on_leak_only_where_that_is_low_too(job, fictional, tmp_path):
    """The untrained model never answers right greedily; by ROUGE its samples share a word with the answer at times."""
    watch, utility = tuple(fictional.group("forget")[:4]), tuple(fictional.group("retain")[:4])
    watched = dataclasses.replace(
        job, watch=watch, watch_utility=utility, watch_tokens=8, watch_metric="rouge_l_recall"
    )
    limits = {"eval_samples": 32, "eval_prompts": 4, "eval_every": 2, "stop_at_greedy": 1.0}
    facts, _, _ = trained(watched, tmp_path / "low", stop_at_leak=1.0, **limits)
    assert facts["steps"] == 2
    facts, _, _ = trained(watched, tmp_path / "high", stop_at_leak=0.0, **limits)
    assert facts["steps"] == 6


class KillOnce(Silent):
    """A reporter that kills its worker with SIGKILL, once, when the training reaches a step."""

    def __init__(self, marker, step):
        self.marker, self.step = marker, step

    def __call__(self, done, note="", force=False):
        if done == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt(Silent):
    """A reporter that asks the training to stop when it reaches a step."""

    def __init__(self, step):
        self.step, self.done = step, 0

    def __call__(self, done, note="", force=False):
        self.done = done

    def stopping(self):
        return self.done >= self.step


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    """(losses, weights) of the training that nothing disturbs."""
    return trained(job, tmp_path_factory.mktemp("undisturbed") / "run")[1:]


def test_a_killed_worker_goes_on_from_its_checkpoint_to_the_same_bits(job, undisturbed, tmp_path):
    marker = tmp_path / "killed"
    _, losses, weights = trained(job, tmp_path / "killed-once", KillOnce(marker, 5))
    assert marker.exists()
    assert_same(losses, weights, *undisturbed)


def assert_same(losses, weights, expected_losses, expected):
    assert losses == expected_losses
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def stopped(job, folder):
    """Start a training that is asked to stop at its third step's end; several workers agree on that in the fourth."""
    folder.mkdir()
    step = 3 if job.settings.alone else 4
    with pytest.raises(InterruptedTrainingError, match=f"stopped after step {step} of {job.settings.steps}"):
        run_training(job, folder, StopAt(3))
    assert not (folder / "model").exists()


def go_on(job, folder, report):
    run_training(job, folder, report)
    losses = [step["total"] for step in json.loads((folder / "history.json").read_text())]
    return losses, load_file(folder / "model" / "model.safetensors")


def changed(job, **changes):
    return dataclasses.replace(job, settings=TrainSection.model_validate(job.settings.model_dump() | changes))


def test_a_training_that_is_asked_to_stop_saves_and_goes_on_to_the_same_bits(job, undisturbed, tmp_path):
    job = changed(job, checkpoint_every=100)
    stopped(job, tmp_path / "run")
    assert_same(*go_on(job, tmp_path / "run", Silent()), *undisturbed)


@pytest.mark.long
def test_two_workers_that_are_asked_to_stop_and_of_which_one_is_killed_go_on_to_the_same_bits(job, tmp_path):
    job = changed(job, workers=2, zero_stage=2, steps=8)
    stopped(job, tmp_path / "run")
    found = go_on(job, tmp_path / "run", KillOnce(tmp_path / "killed", 7))  # after a checkpoint of its own
    assert (tmp_path / "killed").exists()
    assert_same(*found, *trained(job, tmp_path / "undisturbed")[1:])


def test_a_training_continues_another_with_its_weights_and_optimizer_state(job, tmp_path):
    first = dataclasses.replace(job, keep_state=True)
    trained(first, tmp_path / "first", decay_from=1.0)
    warm = dataclasses.replace(first, continue_from=str(tmp_path / "first"))
    cold = dataclasses.replace(job, model=model_source(str(tmp_path / "first" / "model")))
    _, warm_losses, _ = trained(warm, tmp_path / "warm", decay_from=1.0)
    _, cold_losses, _ = trained(cold, tmp_path / "cold", decay_from=1.0)
    assert warm_losses[0] == cold_losses[0]  # the same weights before the first step
    assert warm_losses[2] != cold_losses[2]  # Adam's moments make other steps


def test_a_loss_that_is_not_finite_names_the_step_and_the_examples(job, tmp_path):
    exploding = dataclasses.replace(job, forget=(Example("the-one", "Who?", "Me."),))
    with pytest.raises(DivergedError, match=r"step \d+.*the-one"):
        trained(exploding, tmp_path / "nan", lr=1e30, steps=20, clip=1e30)
