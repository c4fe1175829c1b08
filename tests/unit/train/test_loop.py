"""Every method through the real training loop, and what it carries from step to step."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.errors import DivergedError, UserError
from engine.models.loading import load_model
from engine.models.lora import LoraSection
from engine.models.source import model_source
from engine.models.tokenization import load_tokenizer
from engine.pipeline.alternate_answers import refusals
from engine.stages.reference import ReferenceJob, answer_logprobs
from engine.train import loop
from engine.train.batches import Batches
from engine.train.checkpoint import TrainState
from engine.train.job import TrainJob
from engine.train.launch import train_alone
from engine.train.torch_backend import TorchBackend
from methods import METHODS
from methods.base import Loss
from methods.grad_diff import GradDiff

SETTINGS = TrainSection(
    steps=3, batch_size=4, retain_batch_size=6, lr=1e-2, weight_decay=0.0, warmup=0.0, decay_from=1.0
)
HYPERPARAMETERS = {"rmu": {"layer": 0}, "pdu": {"eps": 1.0, "warmup_epochs": 0.4}, "undial": {"alpha": 1.0}}


@pytest.fixture(scope="module", autouse=True)
def no_pages_about_adapters():
    """PEFT writes one with each adapter, which takes as long as the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.PeftModel.create_or_update_model_card", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def job(base_model, fictional):
    """Any method's training: with alternates and reference log-probabilities, whether it reads them or not."""
    source = model_source(str(base_model))
    forget = tuple(fictional.forget[:12])
    alternate = refusals(forget)
    return TrainJob(
        source,
        {"name": "npo"},
        SETTINGS,
        retain=tuple(fictional.retain[:12]),
        forget=forget,
        alternate=alternate,
        forget_reference=tuple(answer_logprobs(ReferenceJob(source, forget), False)),
        alternate_reference=tuple(answer_logprobs(ReferenceJob(source, alternate), False)),
    )


def trained(job, folder, name, report=None, /, settings=None, **hyperparameters):
    """History and weights of a training with one method; `settings` are changes to the job's."""
    folder.mkdir(exist_ok=True)
    changed = job.settings.model_copy(update=settings or {})
    method = {"name": name, **(HYPERPARAMETERS.get(name, {}) | hyperparameters)}
    train_alone(dataclasses.replace(job, method=method, settings=changed), str(folder), report or Silent())
    history = json.loads((folder / "history.json").read_text())
    weights = "adapter_model.safetensors" if changed.lora is not None else "model.safetensors"
    return history, load_file(folder / "model" / weights)


@pytest.fixture(scope="module")
def target(job):
    return load_file(Path(job.model.path) / "model.safetensors")


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rule"}))
def test_a_method_trains_for_three_steps_and_moves_the_model(job, target, tmp_path, name):
    history, weights = trained(job, tmp_path / name, name)
    assert len(history) == 3
    assert all(np.isfinite(step["total"]) for step in history)
    assert any(not torch.equal(weights[key], target[key]) for key in target)
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("name", ["wga", "npo_ent", "flat", "undial"])
def test_a_method_lowers_its_own_loss(job, tmp_path, name):
    history, _ = trained(job, tmp_path / name, name, settings={"steps": 4, "batch_size": 12, "retain_batch_size": 12})
    assert history[-1]["total"] < history[0]["total"]


def test_rmu_leaves_the_layers_above_its_own_alone(job, target, tmp_path):
    _, weights = trained(job, tmp_path / "rmu", "rmu")
    moved = {key for key in target if not torch.equal(weights[key], target[key])}
    assert any(key.startswith("model.layers.0.") for key in moved)
    assert not any(key.startswith(("model.layers.1.", "model.norm")) for key in moved)


def test_rmu_refuses_a_layer_that_the_model_does_not_have(job, tmp_path):
    with pytest.raises(UserError, match="below the model's 2 layers, found 7"):
        trained(job, tmp_path / "rmu", "rmu", layer=7)


# The state that PDU carries: its dual variable.


def test_the_dual_variable_follows_the_retain_loss_once_the_warm_up_is_over(job, tmp_path):
    history, _ = trained(job, tmp_path / "pdu", "pdu", settings={"steps": 5}, eta=0.5)  # an epoch is 3 steps
    expected = 1.0
    for number, step in enumerate(history, start=1):
        assert step["lambda"] == pytest.approx(expected)
        if number / 3 > 0.4:
            expected = max(0.0, expected + 0.5 * (step["retain"] - 1.0))
    assert expected > 2


def test_the_dual_variable_depends_on_the_mean_over_all_workers_alone(job, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_mean_over_workers", lambda *_: (5.0, 2.0, 3.0, 0.0))  # what all workers agree on
    history, _ = trained(job, tmp_path / "pdu", "pdu", warmup_epochs=0.0)
    assert [step["lambda"] for step in history] == [1.0, 3.0, 5.0]


def test_the_dual_variable_never_falls_below_zero():
    method = METHODS["pdu"](eps=10.0, warmup_epochs=0)
    assert method.next_state({"lambda": 1.0}, {"retain": 0.5}, epoch=1.0) == {"lambda": 0.0}


class CrashError(Exception):
    pass


class After(Silent):
    """A report that does something once a step is done."""

    def __init__(self, step, then):
        self.step, self.then = step, then

    def __call__(self, done, *_, **__):
        if done == self.step:
            self.then()


def crash():
    raise CrashError


LORA = LoraSection(rank=2, dropout=0.3)  # dropout, too, is to be the same again


@pytest.mark.parametrize(("name", "lora"), [("pdu", None), ("blur_npo", None), ("npo", LORA), ("sam", LORA)])
def test_crashed_at_any_step_a_training_goes_on_to_the_same_bits(job, tmp_path, name, lora):
    settings = {"steps": 4, "checkpoint_every": 2, "lora": lora}
    history, expected = trained(job, tmp_path / "whole", name, settings=settings)
    crashed = tmp_path / "crashed"
    for step in (2, 3):  # before the first checkpoint is written, and after it
        with pytest.raises(CrashError):
            trained(job, crashed, name, After(step, crash), settings=settings)
        assert (crashed / "checkpoint").exists() == (step > 2)
    resumed = trained(job, crashed, name, settings=settings)
    assert resumed[0] == history
    assert all(torch.equal(resumed[1][key], expected[key]) for key in expected)


# Every method on an adapter.


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rule"}))
def test_a_method_trains_an_adapter_and_nothing_else(job, tmp_path, name):
    history, adapter = trained(job, tmp_path / name, name, settings={"steps": 2, "lora": LoraSection(rank=2)})
    assert all(np.isfinite(step["total"]) for step in history)
    assert adapter
    assert all(".lora_" in key and torch.isfinite(value).all() for key, value in adapter.items())
    assert any(value.any() for key, value in adapter.items() if ".lora_B." in key)  # B starts at zero


# Divergence.


def test_a_loss_that_is_not_finite_names_step_and_examples_and_keeps_the_last_good_checkpoint(job, tokenizer, tmp_path):
    settings = {"steps": 9, "batch_size": 8, "checkpoint_every": 2}
    loss = GradDiff.loss

    def spoiled(self, model, batch):
        return Loss(*(part * torch.nan for part in loss(self, model, batch)))

    with pytest.MonkeyPatch.context() as monkeypatch:
        spoil = After(4, lambda: monkeypatch.setattr(GradDiff, "loss", spoiled))
        with pytest.raises(DivergedError) as caught:
            trained(job, tmp_path / "run", "grad_diff", spoil, settings=settings)
    asked = dataclasses.replace(job, settings=SETTINGS.model_copy(update=settings))
    names = Batches(asked, frozenset(), tokenizer, 0)
    expected = ", ".join(names.names(4)[:6]) + " and 2 more"
    assert "loss is nan at step 5" in str(caught.value)
    assert f"examples {expected}" in str(caught.value)
    assert "smaller learning rate" in str(caught.value)
    assert f"the checkpoint of step 4 is kept in {tmp_path / 'run'}" in str(caught.value)
    assert json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())["step"] == 4
    history, _ = trained(job, tmp_path / "run", "grad_diff", settings=settings)  # the cause gone, it goes on
    assert len(history) == 9


class Steep(torch.autograd.Function):
    """Nought, with a gradient that is not a number."""

    @staticmethod
    def forward(context, x):
        return x * 0

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.nan


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(job, tmp_path, monkeypatch):
    loss = GradDiff.loss

    def steep(self, model, batch):
        found = loss(self, model, batch)
        return found._replace(total=found.total + Steep.apply(found.total))

    monkeypatch.setattr(GradDiff, "loss", steep)
    monkeypatch.setattr(TorchBackend, "finite", lambda self: pytest.fail("the next step was reached"))
    with pytest.raises(DivergedError, match=r"the gradient is not finite \(its norm is nan\) at step 1"):
        trained(job, tmp_path / "run", "grad_diff", settings={"checkpoint_every": 1})


def test_weights_that_are_not_finite_are_no_checkpoint(job, tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def overflow(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0] = torch.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(DivergedError, match="weights are not finite after step 1"):
        trained(job, tmp_path / "run", "grad_diff", settings={"checkpoint_every": 1})
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("name", ["npo", "pdu"])
def test_a_training_that_was_ended_earlier_goes_on_to_the_same_bits(job, tmp_path, name):
    whole = trained(job, tmp_path / "whole", name)
    trained(dataclasses.replace(job, until=2), tmp_path / "part", name)
    history, weights = trained(dataclasses.replace(job, resume=str(tmp_path / "part")), tmp_path / "rest", name)
    assert history == whole[0]
    assert all(torch.equal(weights[key], whole[1][key]) for key in weights)


def test_a_continued_training_starts_with_the_state_that_the_first_ended_with(job, tmp_path):
    first, _ = trained(dataclasses.replace(job, keep_state=True), tmp_path / "first", "pdu")
    warm = dataclasses.replace(job, continue_from=str(tmp_path / "first"))
    second, _ = trained(warm, tmp_path / "second", "pdu")
    assert second[0]["lambda"] == pytest.approx(max(0.0, first[-1]["lambda"] + first[-1]["retain"] - 1.0))


# Two gradients: BLUR-NPO and SAM.


def halves(job, method):
    """A trainer of two micro-batches a step, and those of the first step."""
    settings = SETTINGS.model_copy(update={"micro_batch_size": 2})
    tokenizer = load_tokenizer(job.model.path)
    batches = Batches(dataclasses.replace(job, settings=settings), method.needs, tokenizer, 0)
    return TorchBackend(job.model, SETTINGS, 2, "cpu", 0), batches.at(0)


def gradient(method, model, micro_batches, part):
    """Gradient of the mean of a part of the loss over micro-batches, all parameters in one row."""
    losses = [getattr(method.loss(model, each), part) for each in micro_batches]
    found = torch.autograd.grad(sum(losses) / len(losses), list(model.parameters()))
    return torch.cat([each.flatten() for each in found]).double()


def test_blur_steps_along_the_forget_gradient_and_what_of_the_retain_gradient_is_orthogonal_to_it(job, monkeypatch):
    method = METHODS["blur_npo"](gamma=0.7, alpha=1.5)
    engine, micro_batches = halves(job, method)
    forget, retain = (gradient(method, engine.model, micro_batches, part) for part in ("forget", "retain"))
    step = step_taken(engine, method, micro_batches, monkeypatch)
    orthogonal = retain - (retain @ forget) / (forget @ forget) * forget
    torch.testing.assert_close(step, 0.7 * forget + 1.5 * orthogonal, rtol=1e-4, atol=1e-7)
    assert abs(float((step - 0.7 * forget) @ forget)) < 1e-4 * float(forget @ forget)


def step_taken(engine, method, micro_batches, monkeypatch):
    """The gradient that the optimiser is given for these micro-batches, all parameters in one row."""
    batches = SimpleNamespace(
        at=lambda step: micro_batches, to=lambda batch, device: batch, seed_dropout=lambda *_: None
    )
    monkeypatch.setattr(engine, "_step", lambda lr: 0.0)
    loop.take_step(engine, method, batches, TrainState(method.initial_state()), 1e-3, False)
    return torch.cat([each.grad.flatten() for each in engine.model.parameters()]).double()


@pytest.mark.parametrize("base", ["npo", "grad_ascent", "npo_ent", "pdu"])
def test_sam_takes_the_forget_gradient_where_the_weights_forget_least(job, monkeypatch, base):
    rho, inner = 0.3, {"name": base, **HYPERPARAMETERS.get(base, {})}
    method, plain = METHODS["sam"](base=inner, rho=rho), METHODS["sam"](base=inner).base_method()
    engine, micro_batches = halves(job, method)
    forget = gradient(plain, engine.model, micro_batches, "forget")
    moved = load_model(job.model)
    at = 0
    with torch.no_grad():
        for each in moved.parameters():
            direction = forget[at : at + each.numel()].view_as(each) / forget.norm()
            each += (rho * direction).float()
            at += each.numel()
    sharp = gradient(plain, moved, micro_batches, "forget")
    retain = gradient(plain, engine.model, micro_batches, "retain") if "retain" in plain.needs else 0
    before = [each.detach().clone() for each in engine.model.parameters()]
    step = step_taken(engine, method, micro_batches, monkeypatch)
    of_forget, of_retain = plain.weights(plain.initial_state())
    torch.testing.assert_close(step, of_forget * sharp + of_retain * retain, rtol=1e-3, atol=1e-5)
    assert float((step - (of_forget * forget + of_retain * retain)).norm()) > 0.01 * float(step.norm())
    assert all(torch.equal(*pair) for pair in zip(engine.model.parameters(), before, strict=True))


def test_sam_over_blur_keeps_blurs_combination(job, monkeypatch):
    method = METHODS["sam"](base={"name": "blur_npo", "gamma": 0.7, "alpha": 1.5}, rho=1e-6)
    engine, micro_batches = halves(job, method)
    forget, retain = (gradient(method, engine.model, micro_batches, part) for part in ("forget", "retain"))
    step = step_taken(engine, method, micro_batches, monkeypatch)
    orthogonal = retain - (retain @ forget) / (forget @ forget) * forget
    torch.testing.assert_close(step, 0.7 * forget + 1.5 * orthogonal, rtol=1e-3, atol=1e-5)


# Arithmetic on weights: the task vector.


def test_the_task_vector_is_walked_backwards_from_the_target_model(job, target, tmp_path):
    fine_tuning = dataclasses.replace(job, retain=job.forget, forget=())
    _, reinforced = trained(fine_tuning, tmp_path / "reinforced", "retrain")
    _, unlearned = trained(job, tmp_path / "unlearned", "task_vector", a=2.0)
    for key, before in target.items():
        torch.testing.assert_close(unlearned[key], before - 2 * (reinforced[key] - before), rtol=0, atol=1e-5)
