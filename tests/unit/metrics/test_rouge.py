"""ROUGE-L is bit-equal to the rouge-score library, whatever the texts are."""

import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from engine.metrics.rouge import rouge_l


def assert_equals_library(candidates, references, stemmer=True):
    ours = rouge_l(candidates, references, stemmer)
    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    theirs = [
        scorer.score(reference, candidate)["rougeL"]
        for candidate, reference in zip(candidates, references, strict=True)
    ]
    for name, values in (("precision", ours.precision), ("recall", ours.recall), ("fmeasure", ours.f1)):
        assert values.dtype == np.float64
        assert values.tolist() == [float(getattr(each, name)) for each in theirs]


ENGLISH = (
    "the a running runs ran easily dies dying news skies relational hopping hopefulness agreed 1,000 3.14 U.S. it's"
)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(ENGLISH.split()), max_size=40).map(" ".join),
    st.text(alphabet=" aeiybls'dngmt-İKßﬁé\n\u2028\x00", max_size=60),
)


@given(st.lists(st.tuples(texts, texts), max_size=8), st.booleans())
def test_equals_rouge_score_on_fuzzed_texts(pairs, stemmer):
    assert_equals_library([pair[0] for pair in pairs], [pair[1] for pair in pairs], stemmer)


def test_equals_rouge_score_on_texts_that_break_tokenizers():
    odd = [
        "",
        " ",
        "...",
        "İstanbul",
        "\u212aelvin 300\u212a",
        "e\u0301tude",
        "x" * 5000,
        "yyyyyyyyyyyy",
        "\ud800 lone",
        "ß",
    ]
    odd += [
        "ﬁnance",
        "日本語 text",
        "a_b_c",
        "١٢٣ 123",
        "\x1c\x85 word",
        "ÅNGSTRÖM",
        "\U0001d400bold",
        "NeSs ingS iesss",
    ]
    pairs = [(candidate, reference) for candidate in odd for reference in odd]
    assert_equals_library([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def test_equals_rouge_score_on_every_character_of_the_basic_plane():
    characters = [chr(code) for code in range(0x10000)]
    text = ["running" + "dies".join(characters[start : start + 64]) for start in range(0, 0x10000, 64)]
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    from engine.metrics.rouge import _stem_function, _Vocabulary

    vocabulary = _Vocabulary(_stem_function())
    numbers = [vocabulary.tokens(each) for each in text]
    stems = {number: stem.decode() for stem, number in vocabulary.numbers.items()}
    for found, each in zip(numbers, text, strict=True):
        assert [stems[number] for number in found] == scorer._tokenizer.tokenize(each)


def test_equals_rouge_score_on_long_and_repeated_texts():
    rng = random.Random(0)
    long = [" ".join(rng.choices(ENGLISH.split(), k=200)) for _ in range(4)]
    repeated = ["again " * 300, "again and " * 200, "again"]
    candidates = long + repeated + long
    references = long[::-1] + repeated[::-1] + long
    assert_equals_library(candidates, references)


def test_every_stem_of_a_longer_word_stays_a_word():
    """The tokenizer drops words whose stem is empty or odd: there are none, so we need not look for them."""
    from nltk.stem.porter import PorterStemmer

    rng = random.Random(1)
    endings = "s ies sses ed ing eed ly ness ful icate ative alize ion ous ement ll e y".split()
    words = ["".join(rng.choices("aeiouybcdlstz19", k=rng.randint(2, 5))) + rng.choice(endings) for _ in range(5000)]
    stems = [PorterStemmer().stem(word) for word in words if len(word) > 3]
    assert all(stem.isascii() and stem.isalnum() for stem in stems)


def test_a_hand_worked_pair():
    found = rouge_l(["the cat sat on a mat"], ["the cat lay on the mat"])
    assert found.recall.tolist() == [4 / 6]
    assert found.precision.tolist() == [4 / 6]


def test_no_pairs_give_empty_arrays():
    assert rouge_l([], []).f1.shape == (0,)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 candidates and 1 references"):
        rouge_l(["a", "b"], ["a"])


def test_metrics_import_without_heavy_libraries():
    import subprocess

    code = "import sys, engine.metrics; print({'torch', 'transformers', 'nltk', 'numpy', 'openai'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
