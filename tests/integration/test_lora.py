"""Adapters: trained alone, saved alone or merged, their base the reference, on one worker or many."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.loading import load_model
from engine.models.lora import LoraSection
from engine.models.source import ModelSource, model_source
from engine.train.job import TrainJob
from engine.train.launch import run_training

TARGETS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture
def job(base_model, fictional):
    settings = TrainSection(
        steps=4, batch_size=8, lr=3e-3, weight_decay=0.0, checkpoint_every=2, lora=LoraSection(rank=4, targets=TARGETS)
    )
    return TrainJob(
        model_source(str(base_model)),
        {"name": "grad_diff", "gamma": 0.1},
        settings,
        retain=tuple(fictional.retain[:50]),
        forget=tuple(fictional.forget[:20]),
    )


def trained(job, folder, **changes):
    folder.mkdir()
    settings = TrainSection.model_validate(job.settings.model_dump() | changes)
    run_training(dataclasses.replace(job, settings=settings), folder, Silent())
    losses = [step["total"] for step in json.loads((folder / "history.json").read_text())]
    return losses, folder / "model"


def weights(folder):
    return {name: value.numpy() for name, value in load_model(ModelSource(str(folder), "")).state_dict().items()}


def test_only_the_adapter_is_saved_and_only_its_layers_differ_from_the_target_model(job, tmp_path):
    losses, folder = trained(job, tmp_path / "run")
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved
    assert all(".lora_" in name and min(value.shape) == 4 for name, value in saved.items())
    assert not (folder / "model.safetensors").exists()
    before, after = weights(job.model.path), weights(folder)
    changed = {name.split(".")[-2] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(TARGETS)
    assert losses[0] != losses[-1]


def test_merged_on_request_is_the_same_model_with_the_adapter_beside_it(job, tmp_path):
    _, adapter = trained(job, tmp_path / "adapter")
    _, whole = trained(job, tmp_path / "merged", lora={"rank": 4, "targets": TARGETS, "merge": True})
    assert not (whole / "adapter_config.json").exists()
    expected, found = weights(adapter), load_file(whole / "model.safetensors")
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert (whole.parent / "adapter" / "adapter_model.safetensors").exists()


def test_a_task_vector_negates_the_adapter(job, tmp_path):
    """W = W_target - a (W_reinforced - W_target), worked out on whole weights."""
    method = {"name": "task_vector", "a": 2.0}
    plain = dataclasses.replace(job, method={"name": "task_vector", "a": -1.0}, retain=())  # -1: the reinforced model
    _, reinforced = trained(plain, tmp_path / "reinforced")
    _, negated = trained(dataclasses.replace(plain, method=method), tmp_path / "negated")
    target, plus, minus = weights(job.model.path), weights(reinforced), weights(negated)
    for name, value in target.items():
        np.testing.assert_allclose(minus[name], value - 2 * (plus[name] - value), atol=1e-6)


@pytest.mark.parametrize("method", [{"name": "rmu", "layer": 1}, {"name": "undial"}, {"name": "kl_min"}])
def test_with_the_adapter_off_it_is_its_own_reference(job, tmp_path, method):
    """The first loss, before any step, is that of a method with a second model as reference."""
    job = dataclasses.replace(job, method=method)
    held, _ = trained(job, tmp_path / "held", lora=None)
    off, _ = trained(job, tmp_path / "off")
    assert off[0] == pytest.approx(held[0], rel=1e-5)
    assert off[1:] != held[1:]


def test_a_training_goes_on_from_an_adapter_and_its_optimizer_state(job, tmp_path):
    first = dataclasses.replace(job, keep_state=True)
    _, folder = trained(first, tmp_path / "first", decay_from=1.0)
    warm, _ = trained(dataclasses.replace(job, continue_from=str(tmp_path / "first")), tmp_path / "warm")
    fresh = dataclasses.replace(job, model=model_source(str(folder)))  # a second adapter on the first
    cold, second = trained(fresh, tmp_path / "cold")
    assert warm[0] == pytest.approx(cold[0], rel=1e-5)  # the same weights before the first step
    assert warm[2] != pytest.approx(cold[2], rel=1e-5)  # Adam's moments make other steps
    assert torch.isfinite(load_model(model_source(str(second))).lm_head.weight).all()


def test_layers_that_the_model_does_not_have_are_refused_with_those_it_has(job, tmp_path):
    with pytest.raises(UserError, match=r"train\.lora\.targets: .*no_such.* it has .*q_proj"):
        trained(job, tmp_path / "run", lora={"targets": ("no_such",)})
