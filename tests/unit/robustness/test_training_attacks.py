"""Attacks that train: on what, and what a wrong file is answered."""

import json
from concurrent.futures import Future

import pytest

from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.models.source import model_source
from engine.robustness.attacks.finetune import Finetune
from engine.robustness.runner import _outcomes
from engine.robustness.training import fine_tuning

EXPERIMENT = parse_experiment({"benchmark": {"name": "fictional"}}, "test")


def test_fine_tuning_takes_questions_and_texts_of_a_file(fictional, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "who?", "answer": "me"}\n{"text": "some words"}\n')
    examples = Finetune(on=str(path)).examples(fictional)
    assert [(each.question, each.answer) for each in examples] == [("who?", "me"), ("", "some words")]
    assert Finetune().examples(fictional) == fictional.retain


def test_fine_tuning_on_what_is_judged_is_refused(fictional, tmp_path):
    path, told = tmp_path / "mine.jsonl", fictional.forget[3]
    path.write_text(json.dumps({"question": told.question, "answer": told.answer}) + "\n")
    with pytest.raises(UserError, match="holds 1 of the forget items"):
        Finetune(on=str(path)).check(EXPERIMENT, fictional)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "/nowhere.jsonl"}, "attacks: finetune: on"),
        ({"train": {"lrr": 1}}, "did you mean 'lr'"),
        ({"train": {"steps": 5}}, "train: steps: give the attack's own"),
        ({"train": {"stop_at_greedy": 0.1}}, "train: stop_at_greedy"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(fictional, options, message):
    with pytest.raises(UserError, match=message):
        Finetune(**options).check(EXPERIMENT, fictional)


def test_an_attack_trains_in_the_models_own_prompt_format(fictional, base_model):
    section = {"path": str(base_model), "template_options": {"enable_thinking": False}}
    experiment = parse_experiment({"benchmark": {"name": "fictional"}, "model": section}, "test")
    settings = Finetune(steps=3).training(experiment)
    job = fine_tuning(experiment, settings, model_source(str(base_model)), fictional.retain[:2], 0)
    assert job.template_options == {"enable_thinking": False}
    assert job.settings.steps == 3


def test_an_attack_that_cannot_be_made_on_a_model_leaves_the_others_standing():
    made, refused = Future(), Future()
    made.set_result(None)
    refused.set_exception(UserError("attacks: interpolate: with: another architecture"))
    outcomes, failed = _outcomes({("npo", "interpolate-0.2"): refused, ("npo", "quantize-nf4"): made})
    assert outcomes == {("npo", "interpolate-0.2"): None, ("npo", "quantize-nf4"): None}
    assert failed == {"npo interpolate-0.2": "attacks: interpolate: with: another architecture"}
