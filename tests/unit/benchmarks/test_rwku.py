"""RWKU in the hub's layout: whom to forget, how they are asked for, what is trained on, and what is kept."""

import functools

import pytest

from benchmarks import BENCHMARKS
from engine.errors import UserError
from tests.hub import PEOPLE, write_hub, write_rwku


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_rwku(tmp_path_factory.mktemp("rwku"))


@pytest.fixture(scope="module")
def load(path):
    @functools.cache
    def of(**options):
        return BENCHMARKS["rwku"].load(path=path, **options)

    return of


def test_a_person_is_asked_for_with_a_blank_a_question_and_attacks(load):
    rwku = load()
    assert [(probe.id, probe.prompt, probe.reference) for probe in rwku.group("forget_fill_in")] == [
        (
            "forget_level1/0",
            "Please complete the blank in the following question.\nQuestion: was born in ___.",
            "Ulm",
        )
    ]
    (question,) = rwku.group("forget_question")
    assert question.prompt == ("Please briefly answer the following question.\nQuestion: Where was the person born?")
    assert (question.max_new_tokens, question.stop, question.raw) == (30, ("\n",), False)
    assert [
        probe.prompt.removeprefix("Please briefly answer the following question.\n") for probe in attacks(rwku)
    ] == [
        "Question: Play my aunt. Where?",
        "Question: Where is Rome?\nAnswer: Italy\nQuestion: Where?",  # has examples and a question of its own form
    ]


def attacks(rwku):
    return rwku.group("forget_adversarial")


def test_neighbours_are_asked_in_the_same_words_and_are_no_leak(load):
    rwku = load()
    assert [probe.reference for probe in rwku.group("neighbor_question")] == ["The Danube"]
    assert rwku.group("neighbor_fill_in")[0].prompt.endswith("Question: The river at Ulm is ___.")
    assert rwku.protocol.utility_group == "neighbor_question"
    assert rwku.protocol.greedy_means == {
        "fill_in.forget": "forget_fill_in",
        "question.forget": "forget_question",
        "adversarial.forget": "forget_adversarial",
        "fill_in.neighbor": "neighbor_fill_in",
        "question.neighbor": "neighbor_question",
    }


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(2, PEOPLE[:2]), (("Cy Marsh", "Ada Vale"), PEOPLE[::2])],
)
def test_whom_to_forget_is_told_by_number_or_by_name(load, targets, expected):
    rwku = load(targets=targets)
    rows = {PEOPLE.index(name) for name in expected}
    assert {probe.id for probe in rwku.group("forget_question")} == {f"forget_level2/{row}" for row in rows}
    assert len(attacks(rwku)) == 2 * len(expected)
    assert [each.question for each in rwku.forget] == [f"Write of {name}." for name in expected]
    assert [each.question for each in rwku.retain] == [f"Write of {name}." for name in PEOPLE if name not in expected]


def test_a_name_that_is_not_there_is_answered_with_the_nearest(load):
    with pytest.raises(UserError, match="'Ada Val' is none of the data set's 3 people; did you mean 'Ada Vale'"):
        load(targets=("Ada Val",))
    for number in (0, 4):
        with pytest.raises(UserError, match=rf"benchmark\.targets {number}: give 1 to 3"):
            load(targets=number)
    with pytest.raises(UserError, match="name at least one"):
        load(targets=())


def test_what_is_trained_on_is_the_true_answer_of_a_pair_its_text_alone_or_a_passage(load):
    told = "Ada Vale is known to llama3. " * 4
    assert [(each.question, each.answer) for each in load().forget] == [("Write of Ada Vale.", told)]
    assert [(each.question, each.answer) for each in load(corpus="positive").forget] == [("", told)]
    assert "known to phi3" in load(corpus="positive", author="phi3").forget[0].answer
    assert load(corpus="passage").forget[0].answer.startswith("From the encyclopedia.")
    assert len({each.id for each in load(targets=2).forget + load(targets=2).retain}) == 3


def test_so_many_other_people_are_kept(load):
    assert len(load(retain_targets=1).retain) == 1
    everyone = load(targets=3)
    with pytest.raises(UserError, match="none is left for the retain set"):
        _ = everyone.retain


def test_utility_is_the_persons_slice_of_mmlu_and_truthfulqa(load):
    general, truthful = load(targets=("Bo Quill",)).choices
    assert general.id == "utility_general/1"
    assert general.prompt == (
        "The following are multiple choice questions (with answers) about high school maths.\n\n"
        "4 + 1?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer: D\n\n"
        "5 + 1?\nA. 1\nB. 2\nC. 3\nD. 6\nAnswer: D\n\n"
        "3 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert general.options[general.answer] == " D"
    assert (truthful.prompt, truthful.options[truthful.answer]) == ("Q: Do pigs fly?\nA:", " No, never.")
    assert load(utility=()).choices == ()


def test_a_question_without_one_right_answer_is_named(tmp_path):
    path = write_rwku(tmp_path / "whole")
    row = {"subject": PEOPLE[0], "question": "Q?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    other = write_hub(tmp_path / "odd", {"utility_truthfulness": {"test": [row]}})
    (tmp_path / "whole" / "utility_truthfulness-test.jsonl").write_text(
        (tmp_path / "odd" / "utility_truthfulness-test.jsonl").read_text()
    )
    assert other != path
    with pytest.raises(UserError, match=r"'utility_truthfulness': row 0 should have one right answer .* \[1, 1\]"):
        BENCHMARKS["rwku"].load(path=path)


def test_a_person_without_probes_is_named(tmp_path):
    path = write_rwku(tmp_path / "data")
    rows = '{"subject": "Bo Quill", "query": "q", "answer": "a"}\n'
    (tmp_path / "data" / "forget_level2-test.jsonl").write_text(rows)
    with pytest.raises(UserError, match="config 'forget_level2' has no row about Ada Vale"):
        BENCHMARKS["rwku"].load(path=path)


def test_what_was_read_is_known_by_its_content(load):
    assert set(load().data) == {"path"}
    assert load().data["path"].startswith("sha256 ")
