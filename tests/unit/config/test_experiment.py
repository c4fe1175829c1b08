"""Experiment files: defaults from the protocol, and one clear line for every mistake."""

import pytest
import yaml

from benchmarks import BENCHMARKS
from engine.config.experiment import load_experiment, parse_experiment
from engine.errors import UserError

GOOD = {"name": "x", "benchmark": {"name": "fictional"}, "methods": [{"name": "npo", "beta": 0.5}]}


def write(folder, document):
    path = folder / "experiment.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def test_unset_keys_come_from_the_benchmarks_protocol():
    experiment = parse_experiment(GOOD, "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert experiment.sampling.n == 200
    assert experiment.leak.k == (1, 2, 4, 8, 16, 32, 64, 128)
    assert experiment.metrics == ("exact_fact", "rouge_l_recall")
    assert experiment.train.batch_size == 40


def test_a_set_key_wins_over_the_protocol():
    document = GOOD | {"train": {"batch_size": 8}, "sampling": {"n": 16}}
    experiment = parse_experiment(document, "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert experiment.train.batch_size == 8
    assert experiment.train.retain_batch_size == 96
    assert experiment.leak.k == (1, 2, 4, 8, 16)


def test_compat_leak_k_cuts_every_decoding_to_fifty_tokens_unless_told_otherwise():
    decoding = [{"temperature": 0.2, "top_k": 7}, {"top_p": 0.8}]
    document = GOOD | {"sampling": {"compat": "leak-k", "decoding": decoding}}
    experiment = parse_experiment(document, "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert [each.top_k for each in experiment.sampling.decoding] == [7, 50]
    again = parse_experiment(experiment.model_dump(), "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert again == experiment


def test_the_papers_grid_of_decodings_has_a_name_and_its_headline_comes_first():
    document = GOOD | {"sampling": {"decoding": "grid"}}
    experiment = parse_experiment(document, "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    found = [(each.temperature, each.top_p) for each in experiment.sampling.decoding]
    paper = {(t, p) for t in (0.2, 0.8, 1.0) for p in (0.2, 0.8, 1.0)} | {(0.0, 1.0)}
    assert (found[0], set(found), len(found)) == ((1.0, 1.0), paper, 10)
    assert all(each.top_k is None for each in experiment.sampling.decoding)
    assert experiment.sampling.n == 200


def test_the_greedy_protocol_takes_one_answer_a_prompt():
    document = GOOD | {"sampling": {"decoding": "greedy"}}
    experiment = parse_experiment(document, "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert [each.temperature for each in experiment.sampling.decoding] == [0.0]
    assert (experiment.sampling.n, experiment.leak.k) == (1, (1,))
    again = parse_experiment(experiment.model_dump(), "file").with_protocol(BENCHMARKS["fictional"].load().protocol)
    assert again == experiment


@pytest.mark.parametrize(("given", "expected"), [("gird", "grid or greedy"), ([], "at least one decoding")])
def test_a_decoding_that_is_none_is_one_line(given, expected):
    with pytest.raises(UserError, match=f"sampling.decoding: expected .*{expected}"):
        parse_experiment(GOOD | {"sampling": {"decoding": given}}, "file")


@pytest.mark.parametrize("key", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}], ids=str)
def test_a_decoding_out_of_range_is_one_line(key):
    (name,) = key
    with pytest.raises(UserError, match=f"sampling.decoding.*{name}"):
        parse_experiment(GOOD | {"sampling": {"decoding": [key]}}, "file")


def test_a_given_model_is_not_fine_tuned_unless_asked():
    protocol = BENCHMARKS["fictional"].load().protocol
    given = parse_experiment(GOOD | {"model": {"path": "org/model"}}, "file").with_protocol(protocol)
    brought = parse_experiment(GOOD, "file").with_protocol(protocol)
    assert given.model.finetune is None
    assert brought.model.finetune == protocol.finetune


def test_overrides_reach_sections_and_list_items(tmp_path):
    path = write(tmp_path, GOOD)
    changes = ["train.lr=2e-5", "methods.0.beta=0.25", "sampling.n=64", "leak.k=[1, 2]"]
    experiment = load_experiment(path, changes)
    assert experiment.train.lr == 2e-5
    assert experiment.methods[0].hyperparameters == {"beta": 0.25}
    assert (experiment.sampling.n, experiment.leak.k) == (64, (1, 2))


def test_a_method_may_train_differently():
    document = GOOD | {"methods": [{"name": "npo", "train": {"lr": 0.5}}], "train": {"steps": 7}}
    experiment = parse_experiment(document, "file")
    section = experiment.train_section(experiment.methods[0])
    assert (section.lr, section.steps) == (0.5, 7)


MISTAKES = {
    "unknown key": (GOOD | {"trian": {}}, r"unknown key 'trian', did you mean 'train'"),
    "unknown train key": (GOOD | {"train": {"lrr": 1}}, r"train.lrr.*did you mean 'lr'"),
    "unknown benchmark": (GOOD | {"benchmark": {"name": "fictionl"}}, r"did you mean 'fictional'"),
    "unknown option": (GOOD | {"benchmark": {"name": "fictional", "splitt": "forget01"}}, r"did you mean 'split'"),
    "unknown split": (GOOD | {"benchmark": {"name": "fictional", "split": "forget99"}}, r"split.*forget10"),
    "unknown method": (GOOD | {"methods": [{"name": "simpno"}]}, r"did you mean 'simnpo'"),
    "unknown hyperparameter": (GOOD | {"methods": [{"name": "npo", "betta": 1}]}, r"did you mean 'beta'"),
    "unknown metric": (GOOD | {"metrics": ["rouge_l_recal"]}, r"did you mean 'rouge_l_recall'"),
    "hyperparameter out of range": (GOOD | {"methods": [{"name": "npo", "beta": 0}]}, r"beta.*greater than 0"),
    "two of a name": (GOOD | {"methods": [{"name": "npo"}, {"name": "npo", "beta": 2}]}, r"label"),
    "workers that do not divide": (GOOD | {"train": {"batch_size": 5, "workers": 2}}, r"does not divide"),
    "too few retain examples": (
        GOOD | {"train": {"batch_size": 8, "micro_batch_size": 2, "retain_batch_size": 3}},
        r"retain_batch_size 3 is less than the step's 4 micro-batches",
    ),
    "a reference that is not there to be moved": (
        GOOD | {"methods": [{"name": "rule", "base": {"name": "simnpo"}, "moving_reference": True}]},
        r"moving_reference: simnpo has no reference",
    ),
    "no benchmark": ({"name": "x"}, r"'benchmark' is missing"),
    "wrong type": (GOOD | {"sampling": {"n": "many"}}, r"sampling.n.*'many'"),
    "k below one": (GOOD | {"leak": {"k": [0]}}, r"leak.k"),
    "path in a name": (GOOD | {"name": "../../etc"}, r"name"),
    "not a mapping": ("- a\n- b\n", r"expected keys"),
    "not YAML": ("a: [1,\nb: }", r"not YAML at line"),
    "empty": ("", r"expected keys"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_and_where(tmp_path, mistake):
    document, expected = MISTAKES[mistake]
    with pytest.raises(UserError, match=expected) as caught:
        load_experiment(write(tmp_path, document))
    assert "\n" not in str(caught.value)
    assert "experiment.yaml" in str(caught.value)


def test_k_above_n_is_refused():
    experiment = parse_experiment(GOOD | {"sampling": {"n": 4}, "leak": {"k": [1, 8]}}, "file")
    with pytest.raises(UserError, match=r"8 is more than sampling.n = 4"):
        experiment.with_protocol(BENCHMARKS["fictional"].load().protocol)


@pytest.mark.parametrize("override", ["train.lr", "=1", "methods.9.beta=1", "name.x.y=1", "train.lr=[1"])
def test_a_wrong_override_is_refused(tmp_path, override):
    with pytest.raises(UserError, match=r"--set|unknown key"):
        load_experiment(write(tmp_path, GOOD), [override])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path / "none.yaml")


def test_a_method_over_others_is_named_after_all_of_them():
    over = [
        {"name": "rule"},
        {"name": "rule", "base": {"name": "grad_diff"}},
        {"name": "sam", "base": {"name": "baldro", "base": {"name": "npo_ent"}}},
        {"name": "sam", "label": "flat", "base": {"name": "npo"}},
    ]
    experiment = parse_experiment(GOOD | {"methods": over}, "e.yaml")
    names = [experiment.label(each) for each in experiment.methods]
    assert names == ["rule-npo", "rule-grad-diff", "sam-baldro-npo-ent", "flat"]


@pytest.mark.parametrize(
    ("asked", "gpus", "fast", "numerics", "expected"),
    [
        (None, 0.0, True, "native", "fp32"),
        (None, 1.0, False, "portable", "bf16"),
        ("auto", 0.0, True, "native", "bf16"),
        ("auto", 0.0, False, "native", "fp32"),
        ("auto", 0.0, True, "portable", "fp32"),
        ("bf16", 0.0, False, "native", "bf16"),
        ("fp32", 1.0, True, "native", "fp32"),
    ],
)
def test_the_precision_of_sampling_is_the_devices_unless_asked_for(asked, gpus, fast, numerics, expected):
    document = {"benchmark": {"name": "fictional"}, "sampling": {"precision": asked}, "numerics": numerics}
    experiment = parse_experiment(document | {"name": "x"}, "x.yaml").on_devices(gpus, fast)
    assert (experiment.sampling.precision, experiment.sampling.gpus) == (expected, gpus)


def test_bfloat16_on_a_cpu_is_not_portable():
    document = {"name": "x", "benchmark": {"name": "fictional"}, "sampling": {"precision": "bf16"}}
    with pytest.raises(UserError, match="set numerics: native"):
        parse_experiment(document | {"numerics": "portable"}, "x.yaml").on_devices(0.0, True)


@pytest.mark.parametrize(
    ("finetune", "train", "sampling", "refused"),
    [
        ({"lora": {}}, {"zero_stage": 3, "workers": 2}, {}, "in shards"),
        ({"lora": {}}, {"lora": {}}, {"engine": "vllm"}, "one adapter beside a whole model"),
        ({"lora": {"merge": True}}, {"zero_stage": 3, "workers": 2, "lora": {}}, {"engine": "vllm"}, None),
        ({"lora": {}}, {"lora": {"merge": True}}, {"engine": "vllm"}, None),
        ({"lora": {}}, {"lora": {}}, {}, None),
    ],
)
def test_methods_start_from_an_adapter_only_where_that_can_be(finetune, train, sampling, refused):
    document = {"benchmark": {"name": "fictional"}, "model": {"path": "m", "finetune": finetune}, "train": train}
    document |= {"methods": [{"name": "npo"}], "sampling": sampling}
    if refused is None:
        parse_experiment(document, "x.yaml")
        return
    with pytest.raises(UserError, match=rf"{refused}.*; set model\.finetune\.lora\.merge: true"):
        parse_experiment(document, "x.yaml")
