"""Attacks that an experiment cannot have are refused in one line, with what to do."""

import pytest

from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.robustness.reading import attacks_of

METHODS = {"methods": [{"name": "npo"}]}
SERVED = {"model": {"path": "m", "endpoint": "http://127.0.0.1:1/v1"}}


def read(fictional, attacks, **document):
    document = {"benchmark": {"name": "fictional"}, "attacks": attacks, **document}
    return attacks_of(parse_experiment(document, "test"), fictional)


def test_an_attack_has_the_seed_of_its_experiment_or_its_own(fictional):
    found = read(fictional, [{"name": "relearn"}, {"name": "prompts", "seed": 5}], seed=3)
    assert [each.seed for each in found] == [3, 5]


def test_the_same_attack_twice_needs_a_label(fictional):
    twice = [{"name": "relearn", "seed": 1}, {"name": "relearn", "seed": 2}]
    with pytest.raises(UserError, match=r"relearn-0\.1 stands there twice; .* give it a `label`"):
        read(fictional, twice)
    found = read(fictional, [twice[0], {**twice[1], "label": "relearn-again"}])
    assert [each.title for each in found] == ["relearn-0.1", "relearn-again"]
    assert "label" not in found[1].model_dump()  # no part of what is done: the attacked model is found again


@pytest.mark.parametrize(
    ("attack", "document", "message"),
    [
        ({"name": "interpolate"}, {}, "the model before it is unknown; give it by `with`"),
        ({"name": "quantize"}, METHODS | {"requests": [36, 36]}, "request after request"),
        ({"name": "quantize"}, SERVED, "behind a server"),
        (
            {"name": "prompts", "families": ["prefix", "paraphrase", "few_shot", "instruction"]},
            SERVED,
            r"cannot be asked by prefix; give families: \[paraphrase, few_shot, instruction\]",
        ),
        ({"name": "relearn", "shar": 0.1}, {}, "did you mean 'share'"),
        ({"name": "quantize", "scheme": "int8", "block": 64}, {}, "leave block out"),
        ({"name": "prune", "label": "a/b"}, {}, "label"),
    ],
)
def test_what_cannot_be_is_refused(fictional, attack, document, message):
    with pytest.raises(UserError, match=message) as error:
        read(fictional, [attack], **document)
    assert "\n" not in str(error.value)


def test_a_model_behind_a_server_is_asked_by_what_it_can_be(fictional):
    (attack,) = read(fictional, [{"name": "prompts", "families": ["paraphrase", "instruction"]}], **SERVED)
    assert len(attack.asked(fictional)) > 2
