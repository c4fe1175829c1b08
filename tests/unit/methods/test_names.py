"""The engine goes by what methods say of themselves: their names stand in methods/ and in experiments alone."""

import ast
from pathlib import Path

import engine
from methods import METHODS
from methods.retrain import Retrain
from methods.rule import Rule
from methods.sam import SAM


def test_no_module_of_the_engine_names_a_method():
    texts = [
        (path.name, node.value)
        for path in Path(engine.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    ]
    assert [text for text in texts if text[1] in METHODS] == []


def test_retraining_alone_starts_from_the_pretrained_model_and_rule_alone_goes_in_rounds():
    assert {method for method in METHODS.values() if method.starts_from == "pretrained"} == {Retrain}
    assert {method for method in METHODS.values() if method.procedure == "rounds"} == {Rule}


def test_rule_counts_its_base_trainings_and_its_control():
    rule = Rule(base={"name": "grad_diff", "alpha": 2.0}, rounds=3, control=True)
    assert (rule.trainings, rule.has_control, rule.base_names) == (5, True, ("grad_diff",))
    assert rule.trained == METHODS["grad_diff"](alpha=2.0)
    assert (rule.trained.trainings, rule.trained.has_control, rule.trained.base_names) == (1, False, ())


def test_a_method_over_another_takes_its_alternate_answers_too():
    over = SAM(base={"name": "altpo", "samples": 3})
    assert (over.alternate_prompt, over.alternate_samples) == (METHODS["altpo"]().prompt, 3)
    assert SAM(base={"name": "idk_dpo"}).alternate_prompt is None
