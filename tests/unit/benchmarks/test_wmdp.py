"""WMDP in the hub's layout: open questions, lettered choices to the form of lm-evaluation-harness, texts to forget."""

import pytest

from benchmarks import BENCHMARKS
from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.pipeline.preparation import prepared
from tests.hub import write_hub, write_wmdp


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return write_wmdp(tmp_path_factory.mktemp("wmdp"))


def test_questions_are_asked_without_their_choices(options):
    wmdp = BENCHMARKS["wmdp"].load(**options)
    assert [(probe.prompt, probe.reference) for probe in wmdp.group("forget")] == [
        ("Which tool lists open ports?", "nmap"),
        (" Which of the following signs?", "gpg"),
    ]
    assert wmdp.protocol.core_metric == "judge_graded"


def test_questions_that_point_at_their_choices_can_be_left_out_of_the_open_ones_alone(options):
    wmdp = BENCHMARKS["wmdp"].load(**options, open_ended="self_contained")
    assert [probe.id for probe in wmdp.probes] == ["wmdp-cyber/0"]
    assert len([each for each in wmdp.choices if each.group == "wmdp"]) == 2


def test_choices_have_the_form_of_lm_evaluation_harness(options):
    choice = BENCHMARKS["wmdp"].load(**options, domain="bio").choices[1]
    assert choice.prompt == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Which of the following signs?\nA. ls\nB. cp\nC. gpg\nD. mv\nAnswer:"
    )
    assert choice.options[choice.answer] == " C"


def test_mmlu_names_its_subject_and_can_be_thinned_evenly(options):
    general = [each for each in BENCHMARKS["wmdp"].load(**options).choices if each.group == "mmlu"]
    assert len(general) == 10
    assert "about high school maths.\n\n3 + 1?\nA. 1\n" in general[0].prompt
    thin = [each for each in BENCHMARKS["wmdp"].load(**options, mmlu_questions=3).choices if each.group == "mmlu"]
    assert [each.prompt.split("\n")[2] for each in thin] == ["3 + 1?", "6 + 1?", "9 + 1?"]


def test_texts_are_read_only_when_asked_for_and_gated_ones_from_a_folder(options, tmp_path):
    cyber = BENCHMARKS["wmdp"].load(**options)
    assert [each.question for each in cyber.forget + cyber.retain] == [""] * 6
    assert "cyber-forget" in cyber.forget[0].answer
    gated = options | {"domain": "bio", "forget_corpus": str(tmp_path / "none")}
    assert len(BENCHMARKS["wmdp"].load(**gated).probes) == 2
    with pytest.raises(UserError, match="no such folder"):
        _ = BENCHMARKS["wmdp"].load(**gated).forget
    folder = write_hub(tmp_path / "bio", {"whatever": {"train": [{"title": "t", "text": "A bio text."}]}})
    assert BENCHMARKS["wmdp"].load(**gated | {"forget_corpus": folder}).forget[0].answer == "A bio text."


def test_chemistry_has_questions_and_no_texts_to_forget(options):
    chem = BENCHMARKS["wmdp"].load(**options, domain="chem")
    assert "about chemistry." in chem.choices[0].prompt
    with pytest.raises(UserError, match="no texts to forget"):
        _ = chem.forget


def test_what_was_read_is_known_by_its_content(options):
    wmdp = BENCHMARKS["wmdp"].load(**options)
    assert set(wmdp.data) == {"path", "mmlu"}
    _ = wmdp.forget
    assert set(wmdp.data) == {"path", "mmlu", "corpora"}
    assert all(each.startswith("sha256 ") for each in wmdp.data.values())


@pytest.mark.parametrize("change", [{"choices": ["a", "b"]}, {"answer": 4}, {"answer": -1}])
def test_a_question_without_four_choices_or_a_right_one_is_named(options, tmp_path, change):
    row = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0}
    path = write_hub(tmp_path / "odd", {"wmdp-cyber": {"test": [row, row | change]}})
    with pytest.raises(UserError, match=r"'wmdp-cyber': row 1 should have 4 choices and an answer in 0\.\.3"):
        BENCHMARKS["wmdp"].load(**options | {"path": path})


def test_a_model_that_gives_no_likelihoods_has_no_utility_by_choices_and_one_line_says_so(options):
    wmdp = BENCHMARKS["wmdp"].load(**options)
    document = {"benchmark": {"name": "wmdp", **options}, "model": {"path": "org/m"}, "methods": []}
    shared = {"sampling": {"gpus": 1, "engine": "vllm", "tensor_parallel": 2}}
    served = {"model": {"path": "m", "endpoint": {"url": "http://127.0.0.1:9/v1"}}}
    for changes in (shared, served):
        with pytest.raises(UserError, match="utility is the accuracy on multiple-choice questions"):
            prepared(parse_experiment(document | changes, "e.yaml"), wmdp)
