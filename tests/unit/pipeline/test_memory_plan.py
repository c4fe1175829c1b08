"""The plan: what it refuses, and that what it proposes instead does fit."""

import dataclasses
import json
import re

import pytest
import yaml

from benchmarks import BENCHMARKS
from engine.cli import main
from engine.cluster.hardware import Gpu, Node, node_of, this_node
from engine.config.experiment import parse_experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.size import size_of
from engine.pipeline import preflight, run_plan
from engine.pipeline.inference_plan import likelihood_item, reference_items, sampling_item
from engine.pipeline.memory_model import GIB
from engine.pipeline.memory_plan import disk_item, plan, refuse, training_item
from engine.pipeline.planned_parts import Training, trainings

H100 = Gpu("H100", 80 * GIB, 80 * GIB)
LLAMA_8B = size_of(
    {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
     "vocab_size": 128256, "num_hidden_layers": 32, "tie_word_embeddings": False}
)  # fmt: skip
LLAMA_1B = dataclasses.replace(LLAMA_8B, parameters=1_235_814_400, layers=16, hidden=2048, intermediate=8192)


def machine(gpus=0, memory=64, cores=16, disk=1000):
    return Node("n", cores, memory * GIB, memory * GIB, (H100,) * gpus, disk * GIB)


def experiment(**changes):
    document = {"benchmark": {"name": "fictional"}, "model": {"path": "org/m"}, "methods": [{"name": "npo"}]} | changes
    benchmark = BENCHMARKS["fictional"].load()
    filled = parse_experiment(document, "e.yaml").with_protocol(benchmark.protocol)
    return filled.on_devices(filled.sampling.gpus or 0.0, fast_bf16=False), benchmark


def test_llama_3_has_eight_billion_parameters():
    assert LLAMA_8B.parameters == 8_030_261_248  # as its model card's safetensors say


CASES = [
    (LLAMA_8B, {"batch_size": 32, "precision": "bf16"}, [machine(8, 1000)]),
    (LLAMA_8B, {"batch_size": 32, "precision": "bf16"}, [machine(1, 1000)]),
    (LLAMA_1B, {"batch_size": 32}, [machine(0, 24, 2)]),
    (LLAMA_1B, {"batch_size": 32}, [machine(1)]),
]


@pytest.mark.parametrize(("size", "settings", "nodes"), CASES)
def test_what_is_proposed_instead_fits(size, settings, nodes):
    training = Training("npo", TrainSection(**settings), graphs=2)
    item = training_item(training, size, nodes)
    assert item.fits in ("no", "tight")
    assert item.instead
    for each in item.instead:
        change = yaml.safe_load(re.fullmatch(r"train (\{.*\}) \([\d.]+ [MG]iB\)", each)[1])
        changed = TrainSection.model_validate(training.settings.model_dump() | change)
        assert training_item(dataclasses.replace(training, settings=changed), size, nodes).fits == "yes", each


@pytest.mark.parametrize("gpus", [1, 4])
def test_no_more_workers_than_there_are_gpus_are_proposed(gpus):
    settings = TrainSection(batch_size=32, workers=8, zero_stage=3, precision="bf16", lora={"rank": 16})
    item = training_item(Training("npo", settings, graphs=2), LLAMA_8B, [machine(gpus, 1000, 96)])
    assert item.instead
    assert all(f"workers: {gpus}}}" in each and "lora" not in each for each in item.instead)


def test_trainings_that_take_the_same_memory_are_one_line_under_all_their_names():
    asked, benchmark = experiment(methods=[{"name": "grad_diff"}, {"name": "simnpo"}, {"name": "rmu"}])
    named = [item.what for item in plan(asked, benchmark, LLAMA_1B, [machine(1)]) if item.what.startswith("train")]
    assert named == ["train grad-diff, simnpo", "train rmu"]


def test_trainings_of_attacks_are_planned():
    asked, benchmark = experiment()
    plain, attacked = (
        plan(asked, benchmark, LLAMA_1B, [machine(1)], attacks=attacks) for attacks in ([], [TrainSection(steps=50)])
    )
    assert [item.what for item in attacked if item not in plain] == ["train an attack", "disk of the store"]
    assert attacked[-1].need == pytest.approx(plain[-1].need + 2 * 4 * LLAMA_1B.parameters)  # of two models


def test_a_training_whose_states_are_too_large_is_refused_in_one_line():
    item = training_item(Training("npo", TrainSection(precision="bf16"), graphs=2), LLAMA_8B, [machine(8, 1000)])
    with pytest.raises(UserError, match=r"train npo: .*does not fit; would fit: .*zero_stage: 3") as refused:
        refuse([item])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        ({"name": "npo"}, 0),
        ({"name": "blur_npo"}, 3),
        ({"name": "sam"}, 4),
        ({"name": "rule", "base": {"name": "ilu", "base": {"name": "sam"}}}, 4),
    ],
)
def test_what_a_step_along_two_gradients_holds_whole_is_counted(method, copies):
    (training,) = trainings(*experiment(methods=[method]))
    assert training.copies == copies
    settings = TrainSection(batch_size=8, workers=8, zero_stage=3, micro_batch_size=1, max_length=64)
    item, plain = (
        training_item(Training("m", settings, graphs=2, copies=count), LLAMA_8B, [machine(8, 1000)])
        for count in (copies, 0)
    )
    assert item.need - plain.need == copies * LLAMA_8B.parameters * 4
    assert item.fits == ("no" if copies else "yes")


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ({"name": "npo"}, None),
        ({"name": "rmu"}, 8),
        ({"name": "sam", "base": {"name": "rmu", "layer": 3}}, 4),
        ({"name": "ilu", "base": {"name": "rmu"}}, None),  # its penalty is of the logits
    ],
)
def test_layers_that_a_loss_does_not_run_are_not_planned_for(method, layers):
    (training,) = trainings(*experiment(methods=[method]))
    assert training.layers == layers


@pytest.mark.parametrize(("method", "measured"), [("grad_diff", 31.1), ("npo", 31.1), ("rmu", 19.2)])
def test_a_training_is_planned_as_it_was_measured_on_a_gpu(method, measured):
    """measured: GiB, of sequences of 148 tokens in bf16, perf/results/gpu.md."""
    settings = {"steps": 20, "batch_size": 16, "max_length": 148, "precision": "bf16"}
    (training,) = trainings(*experiment(methods=[{"name": method}], train=settings))
    size = dataclasses.replace(LLAMA_1B, query=2048, kv=512)
    assert measured <= training_item(training, size, [machine(1)]).need / GIB <= 1.25 * measured


def test_activations_alone_do_not_refuse_a_training():
    """They are an upper bound: sequences are mostly shorter than max_length."""
    item = training_item(Training("npo", TrainSection(batch_size=32), graphs=2), LLAMA_1B, [machine(1)])
    assert item.fits == "tight"
    refuse([item])


def test_more_workers_than_known_nodes_have_room_for_are_not_known_to_fit():
    """GPU nodes that an autoscaler is yet to start have a memory that nobody knows."""
    settings = TrainSection(workers=8, batch_size=8, zero_stage=3)
    assert training_item(Training("npo", settings), LLAMA_8B, [machine(0, 16, 0)]).fits == "unknown"


def test_as_many_sampling_workers_as_memory_holds_are_proposed():
    filled, _ = experiment(sampling={"gpus": 0})
    item = sampling_item(filled, LLAMA_8B, [machine(0, 96, 16)])
    assert item.fits == "no"
    (proposed,) = item.instead
    workers = int(proposed.removeprefix("sampling.workers: "))
    assert workers == 3  # 8.03e9 float32 weights are 30 GiB
    fewer, _ = experiment(sampling={"gpus": 0, "workers": workers})
    assert sampling_item(fewer, LLAMA_8B, [machine(0, 96, 16)]).fits == "yes"


GEMMA_270M = size_of(
    {"hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
     "vocab_size": 262144, "num_hidden_layers": 18}
)  # fmt: skip


@pytest.mark.parametrize(("attacks", "measured"), [(["loss"], 2.30), (["loss", "gradnorm"], 4.46)])
def test_gradient_norms_are_planned_for(attacks, measured):
    """measured: GiB, of Gemma-3-270M in float32, perf/results/plan.md."""
    filled, benchmark = experiment(sampling={"gpus": 0})
    benchmark.protocol = benchmark.protocol.model_copy(update={"attacks": tuple(attacks)})
    benchmark.holdout = benchmark.retain
    item = likelihood_item(filled, benchmark, GEMMA_270M, [machine(0, 24, 2)])
    assert 0.97 * measured <= item.need / GIB <= 1.2 * measured
    assert item.fits == "yes"
    small = likelihood_item(filled, benchmark, GEMMA_270M, [machine(0, 5, 2)])
    assert small.fits == ("no" if "gradnorm" in attacks else "yes")
    assert small.instead == (("benchmark.attacks without gradnorm",) if "gradnorm" in attacks else ())


LLAMA_70B = size_of(
    {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
     "vocab_size": 128256, "num_hidden_layers": 80, "tie_word_embeddings": False}
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "gpus", "shared", "fits", "instead"),
    [
        (LLAMA_8B, "1x80", 1, "yes", ()),
        (LLAMA_8B, "4x24", 1, "yes", ()),
        (LLAMA_8B, "4xt4", 1, "no", ("sampling {engine: vllm, tensor_parallel: 2}",)),
        (LLAMA_70B, "1xh100", 1, "no", ()),
        (LLAMA_70B, "4x24", 1, "no", ()),
        (LLAMA_70B, "8x80", 1, "no", ("sampling {engine: vllm, tensor_parallel: 2}",)),
        (LLAMA_70B, "8x80", 2, "yes", ()),
        (LLAMA_70B, "1x180", 2, "no", ()),
    ],
)
def test_large_models_are_planned_on_gpus_that_are_not_here(size, gpus, shared, fits, instead):
    sampling = {"gpus": 1} | ({"engine": "vllm", "tensor_parallel": shared} if shared > 1 else {})
    item = sampling_item(experiment(sampling=sampling)[0], size, [node_of(gpus)])
    assert (item.fits, item.instead) == (fits, instead)


@pytest.mark.parametrize(
    ("size", "gpus", "train", "fits"),
    [
        (LLAMA_8B, "1x80", {}, "yes"),
        (LLAMA_8B, "8x80", {"workers": 8, "zero_stage": 3, "precision": "bf16"}, "yes"),
        (LLAMA_70B, "8x80", {}, "no"),
        (LLAMA_70B, "8x80", {"workers": 8, "zero_stage": 3, "precision": "bf16"}, "yes"),
        (LLAMA_70B, "4x24", {"workers": 4, "zero_stage": 3, "precision": "bf16"}, "no"),
    ],
)
def test_what_a_method_reads_of_the_target_model_is_planned(size, gpus, train, fits):
    filled, benchmark = experiment(methods=[{"name": "npo"}, {"name": "grad_diff"}], train=train, sampling={"gpus": 1})
    wanted = trainings(filled, benchmark)
    (item,) = reference_items(wanted, filled, size, [node_of(gpus)])
    assert item.fits == fits
    assert bool(item.instead) == (fits == "no")
    assert not reference_items([each for each in wanted if each.label == "grad-diff"], filled, size, [node_of(gpus)])


@pytest.mark.parametrize("first", ["fp32", "bf16"])
def test_of_two_precisions_neither_hides_the_other(first):
    train = {"workers": 4, "zero_stage": 3}
    second = "bf16" if first == "fp32" else "fp32"
    methods = [
        {"name": "npo", "label": "one", "train": train | {"precision": first}},
        {"name": "npo", "label": "two", "train": train | {"precision": second}},
    ]
    filled, benchmark = experiment(methods=methods, sampling={"gpus": 1})
    items = reference_items(trainings(filled, benchmark), filled, LLAMA_70B, [node_of("4x80")])
    assert len(items) == 2
    assert sorted(item.fits for item in items) != ["yes", "yes"]


@pytest.mark.parametrize("text", ["h100", "0x80", "8xfoo", "x80", "8x0", "8x-1"])
def test_gpus_that_are_none_are_one_line(text):
    with pytest.raises(UserError, match="expected as 8x80"):
        node_of(text)


def test_a_disk_that_the_models_do_not_fit_on_is_refused_unless_the_store_holds_them():
    filled, benchmark = experiment(methods=[{"name": "npo"}, {"name": "simnpo"}])
    wanted = trainings(filled, benchmark)
    nodes = [machine(disk=40)]
    assert disk_item(filled, benchmark, wanted, LLAMA_8B, nodes, 0.0).fits == "no"  # two models of 30 GiB
    assert disk_item(filled, benchmark, wanted, LLAMA_8B, nodes, 60 * GIB).fits != "no"


def test_every_training_of_an_experiment_is_planned():
    method = {"name": "rule", "base": {"name": "dpo"}, "rounds": 3, "control": True}
    filled, benchmark = experiment(model={}, methods=[method, {"name": "undial"}])
    found = {each.label: each for each in trainings(filled, benchmark)}
    assert list(found) == ["target", "retain", "rule-dpo", "undial"]
    assert found["rule-dpo"].times == 5  # the base, three rounds, the control
    assert (found["rule-dpo"].graphs, found["undial"].reference, found["target"].graphs) == (3, True, 1)


def test_a_node_that_does_not_see_the_store_is_named(tmp_path):
    nodes = [machine(), dataclasses.replace(machine(), name="far", disk=None)]
    with pytest.raises(UserError, match="not seen by far"):
        run_plan.check_store_visible(nodes, tmp_path)


def test_this_machine_is_seen_as_the_system_says(tmp_path):
    import os

    node = this_node(str(tmp_path))
    assert node.cores == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < node.free <= node.memory <= total * 1.01
    assert this_node(str(tmp_path / "nowhere")).disk is None


@pytest.mark.parametrize(
    ("asked", "state", "says"),
    [
        (["numpy>=2,<3", 'absent>=1; extra == "test"'], "yes", "every version"),
        (["numpy>=99,<100"], "note", "instead of"),
        (["absent>=1,<2"], "no", "absent missing instead of"),
    ],
)
def test_doctor_knows_libraries_outside_of_their_ranges(asked, state, says, monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    found = preflight._libraries()
    assert found.state == state
    assert says in found.said


def test_doctor_looks_and_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    assert main(["doctor", "--store", str(tmp_path / "s"), "--json"]) == 0
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert found["store"]["state"] == found["libraries"]["state"] == "yes"
    assert (found["MLflow"]["state"], "does not answer" in found["MLflow"]["said"]) == ("note", True)
    assert "hunter2" not in json.dumps(found)
    assert list((tmp_path / "s").iterdir()) == []


def test_doctor_says_that_an_experiment_does_not_fit_and_what_would(tmp_path, capsys, base_model, monkeypatch):
    document = {"benchmark": {"name": "fictional"}, "model": {"path": str(base_model)}, "methods": [{"name": "npo"}]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(preflight, "model_size", lambda _: LLAMA_1B)
    monkeypatch.setattr(preflight, "nodes", lambda _: [machine(0, 16, 2)])
    assert main(["doctor", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "s")]) == 1
    said = capsys.readouterr().out
    assert re.search(r"no +plan: train npo: .*does not fit; would fit: train \{lora: \{rank: 16\}", said)


def test_a_run_that_cannot_fit_is_refused_before_any_work(tmp_path, base_model, monkeypatch, capsys):
    from engine.cluster import ray_cluster

    document = {"benchmark": {"name": "fictional"}, "model": {"path": str(base_model)}, "methods": [{"name": "npo"}]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(ray_cluster, "connect", lambda *_: None)
    monkeypatch.setattr(ray_cluster, "check_fits", lambda *_: None)
    monkeypatch.setattr(run_plan, "model_size", lambda _: LLAMA_8B)
    monkeypatch.setattr(run_plan, "nodes", lambda _: [machine(0, 16, 2)])
    assert main(["run", str(tmp_path / "e.yaml"), "--store", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert "plan: train npo" in said
    assert said.splitlines()[-1].startswith("leakatk: train npo: ")
    assert not list((tmp_path / "s").glob("*/*/manifest.json"))


def test_an_autoscaled_cluster_counts_for_what_it_may_grow_to(monkeypatch):
    import ray

    from engine.cluster import ray_cluster

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setenv("LEAKATK_MAX_GPUS", "16")
    assert ray_cluster.resources() == (8.0, 16.0)
    ray_cluster.check_fits(8, 2, "train.workers")
    monkeypatch.setenv("LEAKATK_MAX_GPUS", "many")
    with pytest.raises(UserError, match="LEAKATK_MAX_GPUS=many"):
        ray_cluster.resources()


def test_a_plan_without_a_size_is_of_the_disk_alone():
    filled, benchmark = experiment()
    assert [each.what for each in plan(filled, benchmark, None, [machine()])] == ["disk of the store"]
