"""Two workers under every ZeRO stage, and one under each, train as one worker without DeepSpeed does."""

import dataclasses
import json
import sys
from unittest import mock

import numpy as np
import pytest
import ray

from benchmarks.base import Example
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.errors import DivergedError, UserError
from engine.models.loading import load_model
from engine.models.lora import LoraSection
from engine.models.source import ModelSource, model_source
from engine.pipeline.alternate_answers import refusals
from engine.stages.reference import ReferenceJob, answer_logprobs, read_reference
from engine.train import launch
from engine.train.job import TrainJob
from engine.train.launch import run_training
from engine.train.sharded_reference import reference_stage

STAGES = (0, 1, 2, 3)
# Methods that hold a frozen model, sharded under ZeRO-3; a step from two gradients; a dual variable; an adapter.
CASES = {
    **{f"grad_diff-{stage}": ({"name": "grad_diff", "gamma": 0.1}, stage, {}) for stage in STAGES},
    "accumulated-2": ({"name": "grad_diff", "gamma": 0.1}, 2, {"micro_batch_size": 2}),
    "npo-2": ({"name": "npo"}, 2, {}),
    "dpo-1": ({"name": "dpo"}, 1, {}),
    "pdu-1": ({"name": "pdu", "eps": 1.0, "warmup_epochs": 0.0}, 1, {}),
    **{f"blur_npo-{stage}": ({"name": "blur_npo"}, stage, {}) for stage in STAGES},
    "blur_npo-accumulated-2": ({"name": "blur_npo"}, 2, {"micro_batch_size": 2}),
    **{f"sam-{stage}": ({"name": "sam", "rho": 0.1}, stage, {}) for stage in STAGES},
    "sam-accumulated-2": ({"name": "sam", "rho": 0.1}, 2, {"micro_batch_size": 2}),
    "undial-3": ({"name": "undial", "alpha": 1.0}, 3, {}),
    "kl_min-3": ({"name": "kl_min"}, 3, {}),
    "rmu-3": ({"name": "rmu", "layer": 0, "alpha": 5.0}, 3, {}),
    "task_vector-3": ({"name": "task_vector", "a": 2.0}, 3, {}),
    "adapter-3": ({"name": "undial", "alpha": 1.0}, 3, {"lora": LoraSection(rank=4)}),
    "jensun-3": ({"name": "jensun"}, 3, {}),
    "palu-3": ({"name": "palu", "gamma": 0.1}, 3, {}),
    "blur_npo-adapter-1": ({"name": "blur_npo"}, 1, {"lora": LoraSection(rank=4)}),
}
ALONE = [name for name in CASES if name.startswith(("grad_diff", "blur_npo-3", "sam-3"))]
ALL = [(1, name) for name in ALONE] + [(2, name) for name in CASES]
# One case of each kind: every stage, accumulation, references computed before, a dual variable, two gradients whole and
# sharded, a frozen model, hidden states, arithmetic on weights, an adapter. The others are `long`.
SHORT = {(1, name) for name in ("grad_diff-0", "grad_diff-3", "sam-3")} | {
    (2, name)
    for name in (
        *("grad_diff-0", "grad_diff-1", "grad_diff-2", "grad_diff-3", "accumulated-2", "npo-2", "pdu-1", "blur_npo-1"),
        *("blur_npo-accumulated-2", "sam-2", "sam-3", "kl_min-3", "rmu-3", "task_vector-3", "adapter-3"),
    )
}


@pytest.fixture(scope="module")
def job(base_model, fictional):
    source, forget = model_source(str(base_model)), tuple(fictional.forget[:20])
    settings = TrainSection(steps=3, batch_size=8, retain_batch_size=12, lr=3e-3, weight_decay=0.0, warmup=0.0)
    return TrainJob(
        source,
        {"name": "grad_diff"},
        settings,
        retain=tuple(fictional.retain[:50]),
        forget=forget,
        alternate=refusals(forget),
        forget_reference=tuple(answer_logprobs(ReferenceJob(source, forget), False)),
        alternate_reference=tuple(answer_logprobs(ReferenceJob(source, refusals(forget)), False)),
    )


def case(job, name, workers, distributed=True):
    method, stage, changes = CASES[name]
    changes = changes | {"workers": workers, "zero_stage": stage if distributed else 0}
    return dataclasses.replace(job, method=method, settings=job.settings.model_copy(update=changes))


def one_after_the_other(jobs, folder):
    """Each job by DeepSpeed in the process group that there is; a worker starts once for all of them."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    for name, job in jobs.items():
        (folder / name).mkdir(exist_ok=True)
        launch.train_sharded(job, folder / name, Silent(), "cpu", rank)
        unset_hf_deepspeed_config()
        torch.distributed.barrier()


def on_two_workers(config):
    one_after_the_other(config["jobs"], config["folder"])


@ray.remote(num_cpus=1)
def on_one_worker(jobs, folder):
    import os

    import torch

    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    with mock.patch("ray.train.get_checkpoint", return_value=None):  # this is no worker of Ray Train's
        one_after_the_other(jobs, folder)
    torch.distributed.destroy_process_group()


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


@pytest.fixture(scope="module")
def trained(request, job, tmp_path_factory):
    """workers -> a folder with the training of each case that is asked for: 0: one worker without DeepSpeed."""
    here = [each for each in request.session.items if each.path == request.path and "trained" in each.fixturenames]
    here = [each.callspec.params for each in here]
    asked = {workers: [each["name"] for each in here if each["workers"] == workers] for workers in (1, 2)}
    jobs = {workers: {name: case(job, name, workers) for name in names} for workers, names in asked.items()}
    folders = {workers: tmp_path_factory.mktemp(f"workers{workers}") for workers in (0, 1, 2)}
    for name in dict.fromkeys(asked[1] + asked[2]):
        (folders[0] / name).mkdir()
        launch.train_alone(case(job, name, 1, distributed=False), str(folders[0] / name), Silent())
    if jobs[1]:
        ray.get(on_one_worker.remote(jobs[1], folders[1]))
    if jobs[2]:
        train_on_two(jobs[2], folders[2])
    return folders


def train_on_two(jobs, folder):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        on_two_workers,
        train_loop_config={"jobs": jobs, "folder": folder},
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name="cases", storage_path=str(folder / "ray")),
    ).fit()


def found(folder):
    losses = [step["total"] for step in json.loads((folder / "history.json").read_text())]
    return losses, {k: v.numpy() for k, v in load_model(ModelSource(str(folder / "model"), "")).state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "name"),
    [pytest.param(*each, marks=[] if each in SHORT else [pytest.mark.long]) for each in ALL],
)
def test_workers_and_zero_stages_give_the_losses_and_the_model_of_one_worker(trained, workers, name):
    expected, found_ = found(trained[0] / name), found(trained[workers] / name)
    np.testing.assert_allclose(found_[0], expected[0], rtol=1e-5)
    for key, value in expected[1].items():
        np.testing.assert_allclose(found_[1][key], value, atol=1e-4)


@pytest.mark.slow
def test_reference_logprobs_of_a_sharded_model_are_those_of_a_whole_one(job, tmp_path):
    reference = ReferenceJob(job.model, job.forget[:19])  # one of the two workers has one more
    shared = job.settings.model_copy(update={"workers": 2, "zero_stage": 3})
    assert reference_stage(reference, job.settings) is reference
    stage = reference_stage(reference, shared)
    assert stage.inputs() != reference.inputs()
    stage.run(tmp_path, Silent())
    np.testing.assert_allclose(read_reference(tmp_path), job.forget_reference[:19], rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["logprobs.json"]


@pytest.mark.slow
def test_a_mistake_in_a_sharded_reference_is_told_as_by_one_worker(job, tmp_path):
    reference = ReferenceJob(job.model, job.forget[:2], max_length=2)
    with pytest.raises(UserError, match="max_length"):
        answer_logprobs(reference, False)
    shared = job.settings.model_copy(update={"workers": 2, "zero_stage": 3})
    with pytest.raises(UserError, match="max_length"):
        reference_stage(reference, shared).run(tmp_path, Silent())


def test_an_adapter_is_read_by_one_worker(job, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    reference = ReferenceJob(ModelSource(str(tmp_path), ""), job.forget[:2])
    shared = job.settings.model_copy(update={"workers": 2, "zero_stage": 3})
    assert reference_stage(reference, shared) is reference


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_as_by_one_worker(job, tmp_path):
    """Not as a failure of Ray Train, which would start the workers again, to the same end."""
    settings = job.settings.model_copy(update={"workers": 2, "lr": 1e30, "clip": 1e30, "steps": 20})
    job = dataclasses.replace(job, settings=settings, forget=(Example("the-one", "Who?", "Me."),))
    with pytest.raises(DivergedError, match=r"at step \d+ .*the-one"):
        run_training(job, tmp_path, Silent())
