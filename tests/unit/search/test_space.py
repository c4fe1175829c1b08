"""Search spaces are checked before anything starts, and every mistake is one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.base import Probe
from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.robustness.attacks.relearn import Relearn
from engine.search.objective import deciding, objective_attack
from engine.search.prompt_split import deciding_prompts
from engine.search.space import load_space
from methods import METHODS

SPACE = {
    "method": "npo",
    "parameters": {"beta": {"loguniform": [0.1, 10.0]}, "train.lr": {"choice": [1e-4, 1e-3]}},
    "objective": {"k": 64},
}


@pytest.fixture
def load(fictional, tmp_path):
    def load(**changes):
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE | changes, sort_keys=False))
        experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "e.yaml")
        return load_space(tmp_path / "space.yaml", experiment.with_protocol(fictional.protocol), fictional)

    return load


def test_a_point_of_the_space_is_a_method_with_its_training(load):
    section = load(fixed={"gamma": 0.2}).section({"beta": 2.0, "train.lr": 1e-4})
    assert section.hyperparameters == {"gamma": 0.2, "beta": 2.0}
    assert section.train == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"bta": {"uniform": [0, 1]}}}, "bta"),
        ({"parameters": {"beta": {"uniform": [2, 1]}}}, "empty"),
        ({"parameters": {"beta": {"loguniform": [0, 1]}}}, "above 0"),
        ({"parameters": {"beta": {"uniform": [0, 1], "choice": [1]}}}, "exactly one"),
        ({"parameters": {"train.steps": {"int": [0, 5]}}}, "steps"),
        ({"parameters": {"beta": {"uniform": [1, 2], "when": {"gamma": [1]}}}}, "must be a parameter above it"),
        ({"method": "npoo"}, "'npo'"),
        ({"method": "rule"}, "not searched"),
        ({"objective": {"k": 201}}, "more than sampling.n = 200"),
        ({"objective": {"k": 8, "metric": "cosine"}}, "not cosine"),
        ({"rungs": [{"n": 300}]}, "no cheaper"),
        ({"rungs": [{"n": 8}, {"n": 8}]}, "must grow"),
        ({"search": "grid"}, "grid takes `choice`"),
        (
            {
                "search": "grid",
                "parameters": {"beta": {"choice": [1, 2]}, "gamma": {"choice": [1], "when": {"beta": [1]}}},
            },
            "every combination",
        ),
        ({"search": "pareto", "asha": {"first": 1}}, "wants each of them in full"),
        ({"keep": {"utility": 1.5}}, "less than or equal to 1"),
        ({"keep": {"rouge_recall": 0.9}}, "keep: unknown 'rouge_recall', did you mean 'rouge_l_recall'"),
        ({"objective": {"k": 8, "group": "retain"}}, "fictional has forget, forget_paraphrase"),
        ({"objective": {"attack": "relern"}}, r"objective\.attack\.name: unknown 'relern', did you mean 'relearn'"),
        ({"objective": {"attack": {"share": 0.5}}}, r"'objective\.attack\.name' is missing"),
        ({"objective": {"attack": {"name": "relearn", "shares": 0.5}}}, "did you mean 'share'"),
        ({"objective": {"attack": {"name": "relearn", "share": 0.999}}}, "leaves none to judge"),
        ({"objective": {"attack": {"name": "relearn", "share": 0.98}}}, "no prompt of the half that decides"),
        (
            {"objective": {"attack": "prompts", "group": "forget_paraphrase"}},
            r"objective\.group: attacks are judged by",
        ),
        ({"trails": 3}, "'trials'"),
    ],
)
def test_a_mistake_is_named_in_one_line(load, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_an_attack_is_named_alone_or_with_its_options_and_judges_none_of_what_it_shows(load, fictional):
    bare, whole = (
        load(objective={"attack": each}).objective for each in ("relearn", {"name": "relearn", "share": 0.1})
    )
    experiment = parse_experiment({"benchmark": {"name": "fictional"}, "seed": 3}, "e.yaml")
    attack, same = (objective_attack(each, experiment, fictional) for each in (bare, whole))
    assert attack == same == Relearn(share=0.1, seed=3)
    shown = {each.answer for each in attack.shown(fictional)}
    plain, left = (deciding(fictional, "forget", 3, each) for each in (None, attack))
    assert [each for each in plain if each.reference not in shown] == left
    assert len(left) < len(plain)


FOLDER = Path(__file__).parents[3] / "tune_spaces"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_that_come_along_are_valid(fictional, path):
    experiment = parse_experiment({"benchmark": {"name": "fictional"}}, "e.yaml").with_protocol(fictional.protocol)
    space = load_space(path, experiment, fictional)
    assert space.method == path.stem.removeprefix("fictional-").replace("-", "_")


def test_every_method_that_is_trained_by_itself_has_a_space():
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= set(METHODS) - {"rule", "retrain"}


def test_a_parameter_is_suggested_only_where_its_condition_holds(load):
    when = {"choice": {"choice": [1.0, 2.0]}, "loguniform": [1.0, 10.0]}
    parameters = {"gamma": when["choice"], "beta": {"loguniform": when["loguniform"], "when": {"gamma": [2.0]}}}
    space = load(parameters=parameters)
    found = [suggested(space, gamma) for gamma in (1.0, 2.0)]
    assert found == [{"gamma"}, {"gamma", "beta"}]


def suggested(space, gamma):
    """Names that an Optuna trial is asked for where gamma is chosen so."""
    import optuna

    from engine.search.suggestions import _Suggest

    trial = optuna.trial.FixedTrial({"gamma": gamma, "beta": 3.0})
    _Suggest(space)(trial)
    return set(trial.params)


def test_keep_takes_utility_and_what_the_experiment_scores_by(load):
    assert load(keep={"utility": 0.95, "rouge_l_recall": 0.9}).keep["rouge_l_recall"] == 0.9


def test_an_excess_needs_a_retain_model(fictional, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE | {"objective": {"k": 8, "excess": True}}))
    experiment = parse_experiment({"benchmark": {"name": "fictional"}, "model": {"path": "a/model"}}, "e.yaml")
    with pytest.raises(UserError, match=r"objective\.excess: .* give model\.retain"):
        load_space(tmp_path / "space.yaml", experiment.with_protocol(fictional.protocol), fictional)


def test_half_of_the_entities_decide_and_none_stands_on_both_sides():
    probes = [Probe(f"author{author}/q{item}", "?", "!", "forget") for author in range(10) for item in range(4)]
    half = deciding_prompts(probes, 0)
    authors = {probe.id.split("/")[0] for probe in half}
    assert len(half) == 20
    assert len(authors) == 5
    assert {probe.id for probe in deciding_prompts(probes, 1)} != {probe.id for probe in half}
    first = {probe.id.split("/")[0] for probe in half[:10]}
    assert len(first) > 3  # the first few are a sample of all, not one author after the other
    assert np.unique([probe.id for probe in half]).size == 20
    alone = [Probe(f"author1/q{item}", "?", "!", "forget") for item in range(4)]
    assert len(deciding_prompts(alone, 0)) == 2  # one entity is no reason to hold nothing back


@pytest.mark.parametrize("search", ["tpe", "random", "pareto"])
def test_every_kind_of_search_suggests_points_of_the_space(load, search):
    from engine.search.suggestions import optuna_search

    suggest = optuna_search(load(search=search), seed=0)
    points = [suggest.suggest(f"t{index}") for index in range(6)]
    assert all(0.1 <= point["beta"] <= 10 and point["train.lr"] in (1e-4, 1e-3) for point in points)
    again = optuna_search(load(search=search), seed=0)
    assert [again.suggest(f"t{index}") for index in range(6)] == points


def test_a_grid_takes_every_combination_once(load):
    from engine.search.suggestions import optuna_search

    space = load(search="grid", parameters={"beta": {"choice": [1.0, 2.0]}, "train.lr": {"choice": [1e-4, 1e-3]}})
    suggest = optuna_search(space, seed=0)
    points = [tuple(suggest.suggest(f"t{index}").values()) for index in range(space.trial_count)]
    assert sorted(points) == [(1.0, 1e-4), (1.0, 1e-3), (2.0, 1e-4), (2.0, 1e-3)]


BETA = {"uniform": [1, 2]}


@pytest.mark.parametrize(
    ("choice", "when", "met"),
    [
        ("[1.0e-3, 1.0e-2]", "[1e-3]", {0.001}),  # YAML reads 1e-3 as text
        ("[1e-3, 1e-2]", "[0.001]", {0.001}),
        ("[1, 2]", "[1.0]", {1}),
        ("[1.0, 2.0]", "[1, 2]", {1.0, 2.0}),
    ],
)
def test_conditions_compare_values_as_values(load, choice, when, met):
    choice, when = yaml.safe_load(choice), yaml.safe_load(when)
    space = load(parameters={"gamma": {"choice": choice}, "beta": BETA | {"when": {"gamma": when}}})
    gamma, beta = space.parameters.values()
    assert {value for value in gamma.choice if beta.searched_at({"gamma": value})} == met


@pytest.mark.parametrize(
    "above",
    [
        {"gamma": {"choice": [0.1, 0.2]}},
        {"gamma": {"uniform": [0.0, 1.0]}},  # a point of it is never exactly .3
        {"gamma": {"choice": [True, False]}},
        {"gamma": {"int": [1, 5]}},
    ],
)
def test_a_condition_that_nothing_can_meet_is_refused(load, above):
    with pytest.raises(UserError, match=r"parameters\.beta\.when: no point of the space meets \{gamma: \[0\.3\]\}"):
        load(parameters=above | {"beta": BETA | {"when": {"gamma": [0.3]}}})


def test_conditions_that_cannot_hold_together_are_refused(load):
    gamma = {"choice": [0.1, 0.2]}
    train = {"int": [1, 5], "when": {"gamma": [0.1]}}
    with pytest.raises(UserError, match=r"parameters\.beta\.when: no point"):
        load(
            parameters={
                "gamma": gamma, "train.steps": train, "beta": BETA | {"when": {"gamma": [0.2], "train.steps": [3]}}
            }
        )  # fmt: skip
    load(parameters={"gamma": gamma, "train.steps": train, "beta": BETA | {"when": {"train.steps": [3]}}})
