"""What a run says of attacks in words: what came back, beside the retain model, and who stays forgotten."""

import dataclasses

import pytest

from engine.reporting.attack_table import attack_names, attack_rows, headline, headlines, print_attacks
from engine.reporting.html_report import write_report
from engine.reporting.records import AttackResult
from engine.reporting.results import ModelResults, read_results
from tests.made import make_run

FACTS = ["silent harbor of ash", "crooked medal of bells"]
MODELS = {
    (name, role): [["nothing"] * 8 for _ in FACTS]
    for name, role in (("retain", "retain"), ("npo", "unlearned"), ("simnpo", "unlearned"))
}
RELEARN = {"done": "After 50 steps on 10% of the facts", "judges": "the others"}


@pytest.fixture
def results(tmp_path):
    """Results with these attacks on the retain model and on the two that were unlearned, by name and leak@k."""

    def attacked(curve, name, leak, before, excess, low, **more):
        ends = {"excess": [excess] * 3, "excess_low": [low] * 3, "excess_high": [1.0] * 3}
        curve = dataclasses.replace(curve, leak=[leak] * 3, **ends)
        return AttackResult(name, curve, 0.8, [leak - before] * 3, [0.0] * 3, [1.0] * 3, **more)

    def results(**attacks):
        found = read_results(make_run(tmp_path, "attacked", MODELS, FACTS))
        rows = {
            name: [attacked(found.models[0].curves[0], *each, **more) for each, more in made]
            for name, made in attacks.items()
        }
        models = [dataclasses.replace(model, attacks=rows[model.name]) for model in found.models]
        return dataclasses.replace(found, models=ModelResults(models))

    return results


def two_attacks(results):
    return results(
        retain=[(("relearn-0.1", 0.05, 0.02, 0, 0), RELEARN), (("finetune-9", 0.9, 0.02, 0, 0), {})],
        npo=[(("relearn-0.1", 0.41, 0.05, 0.36, 0.2), RELEARN), (("finetune-9", 0.8, 0.0, -0.1, -0.3), {})],
        simnpo=[
            (("relearn-0.1", 0.10, 0.10, 0.05, -0.1), RELEARN),
            (("finetune-9", 0.92, 0.0, 0.02, -0.1), {"uninformative": True}),
        ],
    )


def test_the_model_that_gives_most_stands_beside_the_retain_model(results):
    assert headlines(two_attacks(results)) == [
        "After 50 steps on 10% of the facts, npo gives back 0.41 of the others in 4 samples (0.05 before), "
        "the retain model 0.05 (0.02 before).",
        "Under finetune-9, simnpo gives back 0.92 of the facts in 4 samples (0.00 before), the retain model 0.90 "
        "(0.02 before); uninformative: the attack raised the retain model too, and intervals do not tell the two "
        "apart.",
    ]


def test_the_headline_is_of_the_worst_that_tells_something_and_of_who_stays_forgotten(results, tmp_path, capsys):
    found = two_attacks(results)
    first, second = headline(found)
    assert first.startswith("After 50 steps on 10% of the facts, npo gives back 0.41 of the others")
    assert second.endswith("than the retain model does: npo (1 of 2); under none, as far as intervals tell: simnpo.")
    page = write_report(found, tmp_path, tmp_path).read_text()
    assert page.index(first) < page.index('id="leak"')
    print_attacks(found)
    said = " ".join(capsys.readouterr().out.split())
    assert first in said
    assert "uninformative" in said


def test_where_no_model_gives_more_the_headline_says_so(results):
    nothing = [(("relearn-0.1", 0.0, 0.0, 0.0, -0.1), RELEARN)]
    *_, last = headline(results(retain=nothing, npo=nothing, simnpo=nothing))
    assert last == "Under no attack does npo, simnpo give more than the retain model, as far as intervals tell."


def test_attacks_stand_in_the_experiments_order_though_the_first_model_lacks_one(results):
    found = two_attacks(results)
    first, *others = found.models
    lacking = dataclasses.replace(first, attacks=first.attacks[1:])
    found = dataclasses.replace(found, models=ModelResults([lacking, *others]))
    assert attack_names(found) == ["relearn-0.1", "finetune-9"]


def test_without_attacks_nothing_is_said(results):
    found = results(retain=[], npo=[], simnpo=[])
    assert (attack_rows(found), headline(found), headlines(found)) == ([], [], [])


@pytest.mark.parametrize("retain", [True, False])
def test_a_model_that_was_only_evaluated_is_the_one_that_attacks_are_told_of(results, tmp_path, retain):
    attacks = [(("relearn-0.1", 0.4, 0.1, 0.3, 0.2), RELEARN)]
    found = results(retain=attacks, npo=attacks, simnpo=attacks)
    kept = [model for model in found.models if model.name == "npo" or (retain and model.name == "retain")]
    alone = [dataclasses.replace(model, role="target" if model.name == "npo" else "retain") for model in kept]
    found = dataclasses.replace(found, models=ModelResults(alone))
    (said,) = headlines(found)
    assert said.startswith("After 50 steps on 10% of the facts, npo gives back 0.40 of the others")
    assert said in write_report(found, tmp_path, tmp_path).read_text()
