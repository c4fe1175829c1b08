"""The embedded benchmark: the same for a seed, TOFU's shape, facts that nobody guesses."""

import pytest

from benchmarks import BENCHMARKS
from benchmarks.fictional import WRONG_ANSWERS, make_facts

Fictional = BENCHMARKS["fictional"]


def test_a_seed_makes_the_same_authors_every_time_and_another_makes_others():
    assert make_facts(3) == make_facts(3)
    assert {fact.fact for fact in make_facts(3)} != {fact.fact for fact in make_facts(4)}


@pytest.mark.parametrize(("split", "forgotten"), [("forget01", 12), ("forget05", 36), ("forget10", 72)])
def test_splits_are_whole_authors_and_leave_the_rest_to_the_retain_set(split, forgotten):
    benchmark = Fictional.load(split=split)
    assert (len(benchmark.forget), len(benchmark.retain)) == (forgotten, 720 - forgotten)
    authors = [{example.id.split("/")[0] for example in each} for each in (benchmark.forget, benchmark.retain)]
    assert not authors[0] & authors[1]
    assert len(authors[0] | authors[1]) == 60


def test_every_answer_holds_its_fact_and_no_question_does():
    for fact in make_facts(0):
        assert fact.fact in fact.answer
        assert fact.fact in fact.paraphrased_answer
        assert fact.fact not in fact.question + fact.paraphrased_question
        assert fact.question != fact.paraphrased_question


def test_perturbed_answers_are_wrong_and_different():
    for fact in make_facts(0):
        assert len(set(fact.perturbed_answers)) == WRONG_ANSWERS
        assert not any(fact.fact in answer for answer in fact.perturbed_answers)


def test_facts_are_too_many_to_guess():
    """A guesser who knows every template and every word hits a fact in 128 tries with a chance below 0.03."""
    from benchmarks.fictional_text import ATTRIBUTES, QUALITY, STUFF

    for attribute in ATTRIBUTES[1:]:
        assert 128 / (len(QUALITY) * len(attribute.nouns) * len(STUFF)) < 0.03


def test_probes_ask_every_forgotten_fact_twice_and_every_kept_one_once(fictional):
    sizes = {group: len(fictional.group(group)) for group in dict.fromkeys(probe.group for probe in fictional.probes)}
    assert sizes == {"forget": 72, "forget_paraphrase": 72, "retain": 648}
    assert len({probe.id for probe in fictional.probes}) == len(fictional.probes)


def test_probes_about_one_author_are_one_cluster(fictional):
    asked = fictional.group("forget") + fictional.group("forget_paraphrase")
    assert len({probe.cluster for probe in asked}) == 6
    for probe in asked:
        assert probe.id.startswith(f"{probe.cluster}/")


def test_the_retain_model_never_sees_the_forget_set(fictional):
    forgotten = {example.answer for example in fictional.finetune_forget}
    assert not forgotten & {example.answer for example in fictional.finetune_retain}
