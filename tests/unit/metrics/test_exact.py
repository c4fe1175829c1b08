"""A fact counts as said when its words stand in the response, whole and in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.exact import exact_fact
from engine.metrics.words import words


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("She was born in Lisbon, in 1971.", "Lisbon"),
        ("born in NEW\n  york!", "New York"),
        ("the 'Silver Harp' award", "silver harp"),
        ("Lisbon", "Lisbon."),
        ("a well-known man", "well known"),
        ("Cafe\u0301 Royal", "Café Royal"),
        ("Große Straße", "GROSSE STRASSE"),
        ("__Lisbon__", "Lisbon"),
    ],
)
def test_said(response, fact):
    assert exact_fact([response], [fact]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("it starts at nine", "art"),
        ("born in 1971", "197"),
        ("York New", "New York"),
        ("New old York", "New York"),
        ("", "Lisbon"),
        ("Lisbo n", "Lisbon"),
    ],
)
def test_not_said(response, fact):
    assert exact_fact([response], [fact]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("首都是北京。", "北京"),
        ("北京 是首都", "北京"),
        ("首都は東京です。", "東京"),
        ("本社はパリにあります", "パリ"),
        ("他1931年出生在Lisbon市", "1931"),
        ("他1931年出生在Lisbon市", "Lisbon"),
        ("ﾊﾟﾘ", "パリ"),
        ("수도는 서울입니다", "서울"),
        ("서울에서는 비가 온다", "서울"),
        ("Paris에서", "Paris"),
        ("เขาเกิดที่กรุงเทพ", "กรุงเทพ"),
        ("နေပြည်တော်မှာ", "နေပြည်တော်"),
        ("លោកនៅភ្នំពេញ", "ភ្នំពេញ"),
        ("लेखक राम है", "राम"),
        ("அவர் பெயர் கண்ணன்.", "கண்ணன்"),
        ("وُلِدَ أَحْمَد في دمشق", "أحمد"),
        ("נולד בעיר חֵיפָה", "חיפה"),
        ("عام ١٩٧١", "1971"),
        ("می\u200cرود", "میرود"),
        ("ISTANBUL", "istanbul"),
        ("İstanbul", "istanbul"),
        ("Её звали АННА Петрова", "Анна Петрова"),
    ],
)
def test_said_in_any_script(response, fact):
    assert exact_fact([response], [fact]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("response", "fact"),
    [
        ("上海", "北京"),
        ("京北", "北京"),
        ("लेखक रोम है", "राम"),
        ("रामायण", "राम"),
        ("கண்ணான்", "கண்ணன்"),
        ("ดีม้า", "มา"),
        ("本社はパリスにあります", "パリ"),
        ("서울대학교", "서울"),
        ("출생 1931년", "193"),
        ("Её звали Жанна", "Анна"),
    ],
)
def test_not_said_in_any_script(response, fact):
    assert exact_fact([response], [fact]).tolist() == [0.0]


@given(st.text(max_size=40), st.text(max_size=10), st.text(max_size=10))
def test_a_text_says_itself_and_each_of_its_ends_where_a_space_parts_them(text, before, after):
    if words(text):
        assert exact_fact([f"{before} {text} {after}"], [text]).tolist() == [1.0]


def test_scores_come_in_the_order_of_the_pairs():
    found = exact_fact(["a b", "c", "a b", "b"], ["b", "b", "a", "b"])
    assert found.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert found.dtype == np.float64


@pytest.mark.parametrize("fact", ["", " ", "...!"])
def test_a_fact_without_a_word_is_refused(fact):
    with pytest.raises(ValueError, match="no word"):
        exact_fact(["anything"], [fact])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="1 candidates and 2 references"):
        exact_fact(["a"], ["a", "b"])
