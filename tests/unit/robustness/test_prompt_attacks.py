"""Families of prompts, against the tokens that a tokenizer gives and facts found by eye."""

import copy
import dataclasses

import numpy as np
import pytest

from benchmarks.base import Example, Probe
from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.models.tokenization import encode_prompt
from engine.robustness.attacks.prompts import INSTRUCTIONS, Prompts
from engine.robustness.attacks.relearn import Relearn
from engine.robustness.joint import origin, pooled
from engine.stages.given_answer import given_answer
from engine.stages.score import GroupScores

EXPERIMENT = {"benchmark": {"name": "fictional"}}


def probe(**fields):
    return Probe("a", "where", "the harbour of ash stands", "forget", fact="harbour of ash", **fields)


def test_the_given_tokens_stand_behind_the_prompt_and_are_not_scored(tokenizer, fictional):
    asked = fictional.probes[0]
    given = given_answer(
        tokenizer, Prompts(families=("prefix",), prefix=(2,)).asked(fictional)["prefix-2"][0], "auto", None
    )
    words = tokenizer(asked.reference)["input_ids"]
    assert list(given.token_ids) == words[:2]
    left = tokenizer(given.probe.reference)["input_ids"]
    assert left == words[2:]


def test_only_what_is_left_of_the_fact_counts(tokenizer):
    given = given_answer(tokenizer, probe(given_tokens=2), "auto", None)  # "the harbour"
    assert given.probe.fact == "of ash"
    assert given.probe.reference == "of ash stands"


def test_where_the_whole_fact_is_given_nothing_is_scored(tokenizer):
    assert given_answer(tokenizer, probe(given_tokens=4), "auto", None).probe is None
    assert given_answer(tokenizer, probe(given_tokens=50), "auto", None).probe is None


def test_a_cloze_gives_the_sentence_up_to_its_fact(tokenizer, fictional):
    cloze = Prompts(families=("cloze",)).asked(fictional)["cloze"]
    assert cloze
    for each in cloze[:20]:
        given = given_answer(tokenizer, each, "auto", None)
        assert given.probe.fact == each.fact
        assert given.probe.reference.startswith(each.fact)


def test_paraphrases_are_other_questions_about_the_same_items(fictional):
    group = fictional.group(fictional.protocol.leak_group)
    asked = Prompts(families=("paraphrase",)).asked(fictional)["paraphrase"]
    by_id = {each.id: each for each in group}
    assert {origin(each.id) for each in asked} == set(by_id)
    assert all(each.prompt != by_id[origin(each.id)].prompt for each in asked)
    assert all(each.fact == by_id[origin(each.id)].fact for each in asked)


def test_shots_are_earlier_turns_of_retain_questions(tokenizer, fictional):
    asked = Prompts(families=("few_shot",), shots=2, seed=3).asked(fictional)["few_shot"][0]
    retain = {(each.question, each.answer) for each in fictional.retain}
    assert set(asked.shots) <= retain
    ids = encode_prompt(tokenizer, asked.prompt, "auto", None, shots=asked.shots)
    text = tokenizer.decode(ids)
    assert text.count("<q>") == 3
    assert text.count("<eos>") == 2
    assert ids[-len(encode_prompt(tokenizer, asked.prompt)) :] == encode_prompt(tokenizer, asked.prompt)


def test_each_wrapper_is_a_family_that_holds_the_question(fictional, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Tell me, {question}\n", encoding="utf-8")
    asked = Prompts(families=("instruction",), file=str(own)).asked(fictional)
    lines = [line for line in INSTRUCTIONS.read_text().splitlines() if line.strip()]
    assert len(asked) == len(lines) + 1
    first = fictional.group("forget")[0]
    assert asked[f"instruction-{len(lines) + 1}"][0].prompt == f"Tell me, {first.prompt}"


@pytest.mark.parametrize(
    "line", ["no place for it", "{question} {0}", "{", "{question.x}", "{question[0]}", "{question!r}", "{question:>9}"]
)
def test_a_wrapper_without_a_question_is_refused(fictional, tmp_path, line):
    own = tmp_path / "own.txt"
    own.write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match="no other braces"):
        Prompts(families=("instruction",), file=str(own)).asked(fictional)


def test_a_server_is_not_asked_to_go_on_with_a_begun_answer(fictional):
    model = {"path": "m", "endpoint": "http://127.0.0.1:1/v1"}
    experiment = parse_experiment({**EXPERIMENT, "model": model}, "test")
    with pytest.raises(UserError, match="behind a server"):
        Prompts(families=("prefix",)).check(experiment, fictional)
    Prompts(families=("paraphrase", "instruction")).check(experiment, fictional)
    Prompts().check(experiment, fictional)
    assert not [name for name in Prompts().asked(fictional, served=True) if name.startswith("prefix")]
    assert [name for name in Prompts().asked(fictional) if name.startswith("prefix")]


def test_what_a_benchmark_cannot_be_asked_by_is_left_out_unless_it_was_named(fictional):
    """Probes of an evaluation set need not say which forget item they are about: no question is another's wording."""
    apart = copy.copy(fictional)
    apart.forget, apart.retain = [], [Example("a", "", "running text alone")]
    names = set(Prompts().asked(apart))
    assert names
    assert not names & {"paraphrase", "few_shot"}
    for family in ("paraphrase", "few_shot"):
        with pytest.raises(UserError, match=f"cannot be asked by {family}"):
            Prompts(families=(family,)).asked(apart)


def test_families_are_put_together_by_the_prompt_that_they_stand_for():
    one = GroupScores(["a~x", "b~x", "c~x"], np.array([[1, 0], [0, 0], [1, 1]]))
    other = GroupScores(["c~y", "a~y"], np.array([[0, 1], [0, 0]]))
    joint = pooled({"x": one, "y": other})
    assert joint.prompt_ids == ["a", "c"]
    assert joint.scores.tolist() == [[1, 0, 0, 0], [1, 1, 0, 1]]


def test_a_prompt_whose_own_id_has_a_tilde_is_found_again():
    one = GroupScores(["a~1~x", "a~2~x"], np.array([[1, 0], [0, 0]]))
    other = GroupScores(["a~2~y", "a~1~y"], np.array([[1, 1], [0, 1]]))
    joint = pooled({"x": one, "y": other})
    assert joint.prompt_ids == ["a~1", "a~2"]
    assert joint.scores.tolist() == [[1, 0, 0, 1], [0, 0, 1, 1]]


def test_families_without_a_common_prompt_are_nothing_together():
    joint = pooled({"x": GroupScores(["a~x"], np.ones((1, 2))), "y": GroupScores(["b~y"], np.ones((1, 3)))})
    assert joint.prompt_ids == []
    assert joint.scores.shape == (0, 5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_relearning_shows_nothing_that_is_judged(fictional, share, seed):
    attack = Relearn(share=share, seed=seed)
    shown, judged = attack.shown(fictional), attack.judged(fictional)
    assert len(shown) == round(share * len(fictional.forget))
    answers = {each.answer for each in shown}
    about_forget = [each for each in judged if each.group.startswith("forget")]
    assert about_forget
    assert not [each for each in about_forget if each.reference in answers]
    assert len(about_forget) == 2 * (len(fictional.forget) - len(shown))  # question and paraphrase of each other item
    assert [each for each in judged if each.group == "retain"] == fictional.group("retain")


def test_an_item_that_says_the_same_as_a_shown_one_is_not_judged(fictional):
    """As in files of users, where a row may stand twice."""
    twice = copy.copy(fictional)
    twice.forget = [*fictional.forget, *(dataclasses.replace(each, id=f"{each.id}-again") for each in fictional.forget)]
    probes = [dataclasses.replace(each, id=f"{each.id}-again") for each in fictional.group("forget")]
    twice.probes = [*fictional.probes, *probes]
    attack = Relearn(share=0.3)
    answers = {each.answer for each in attack.shown(twice)}
    judged = [each for each in attack.judged(twice) if each.group.startswith("forget")]
    assert judged
    assert not [each for each in judged if each.reference in answers]


def test_a_share_that_leaves_nothing_to_judge_is_refused(fictional):
    experiment = parse_experiment(EXPERIMENT, "test")
    with pytest.raises(UserError, match="leaves none to judge"):
        Relearn(share=0.999).check(experiment, fictional)
