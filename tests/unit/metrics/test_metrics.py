"""Core metrics agree with the library that defines them, or with what a reader would say."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from engine.metrics import score, score_counted
from engine.metrics.exact import exact_fact
from engine.metrics.rouge import rouge_l

WORDS = [
    "running",
    "runs",
    "authors",
    "author's",
    "the",
    "The",
    "été",
    "İstanbul",
    "naïve",
    "x1",
    "--",
    "fly",
    "flies",
    "",
]


def ours(candidates, references, stemmer=True):
    found = rouge_l(candidates, references, stemmer)
    return [found.precision, found.recall, found.f1]


def library(candidates, references, stemmer):
    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    scores = [scorer.score(r, c)["rougeL"] for c, r in zip(candidates, references, strict=True)]
    return [np.array([getattr(each, name) for each in scores]) for name in ("precision", "recall", "fmeasure")]


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_l_equals_the_rouge_score_library_on_sentences(stemmer):
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(0, 30))) for _ in range(600)]
    candidates, references = texts[:300], texts[300:]
    for mine, theirs in zip(
        ours(candidates, references, stemmer), library(candidates, references, stemmer), strict=True
    ):
        assert mine.dtype == np.float64
        assert np.array_equal(mine, theirs)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_rouge_l_equals_the_rouge_score_library_on_any_text(candidate, reference):
    for mine, theirs in zip(ours([candidate], [reference]), library([candidate], [reference], True), strict=True):
        assert np.array_equal(mine, theirs)


def test_rouge_l_of_a_long_text_and_of_repeated_pairs():
    long = " ".join(f"word{index % 37}" for index in range(1000))
    candidates, references = [long, "a b", "a b"], [long[::-1], "b a", "b a"]
    assert np.array_equal(rouge_l(candidates, references).f1, library(candidates, references, True)[2])


@pytest.mark.parametrize(
    ("response", "fact", "expected"),
    [
        ("She was born on November 16, 1971.", "November 16 1971", 1),
        ("born in SILENT  harbor of ash", "silent harbor of ash", 1),
        ("a start", "art", 0),
        ("silent harbor in ash", "silent harbor of ash", 0),
        ("", "ash", 0),
        ("harbor of ash silent", "silent harbor of ash", 0),
    ],
)
def test_a_fact_counts_when_its_words_stand_together_and_whole(response, fact, expected):
    assert exact_fact([response], [fact]).tolist() == [expected]


def test_a_reference_without_words_is_refused():
    with pytest.raises(ValueError, match="no word"):
        exact_fact(["a"], ["?!"])


@pytest.mark.parametrize("metric", ["exact_fact", "rouge_l_recall", "rouge_l_precision", "rouge_l_f1"])
def test_every_metric_of_words_gives_one_score_in_range_for_each_pair(metric):
    scores = score(metric, ["the fox", "", "a hare"], ["the fox", "the fox", "the fox"])
    assert scores[0] == 1.0
    assert scores[1] == 0.0
    assert all(0 <= each <= 1 for each in scores)


CHINESE = "作者的全名是林晓云，她出生于台北。"
RUSSIAN = "Эту книгу написала Анна Петрова в 1931 году."


@pytest.mark.parametrize("metric", ["rouge_l_recall", "rouge_l_precision", "rouge_l_f1", "entailment_es"])
@pytest.mark.parametrize("reference", [CHINESE, RUSSIAN, "ａｂｃ ｄｅｆ", "شارع 12", "øæ"])
def test_a_metric_blind_to_a_reference_scores_none_of_its_answers_and_names_one_that_sees(metric, reference):
    """A verbatim answer would score 0, and one that shares a number alone 1."""
    found = score_counted(metric, [reference, "1931 12", "", None], [reference] * 4)
    assert found.scores == [None] * 4
    (reason, count), missing = found.failures.items()
    assert (count, missing) == (3, ("no response", 1))
    assert "exact_fact" in reason


@pytest.mark.parametrize("reference", ["Été à Orléans", "Nguyễn Văn Thiệu", "İstanbul", "Harry Potter (哈利)", "1931"])
def test_latin_references_score_as_the_library_scores_them(reference):
    for name, theirs in zip(
        ("precision", "recall", "f1"), library([reference, "x"], [reference] * 2, True), strict=True
    ):
        assert score(f"rouge_l_{name}", [reference, "x"], [reference] * 2) == theirs.tolist()
