"""ROUGE-L, equal to the rouge-score library's values on every input, at a fraction of its time.

The library's tokenizer is done with bytes operations, its stemmer stands behind a cache of words, each text is
tokenised once and each distinct pair compared once, by rapidfuzz's longest common subsequence over integers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import regex
from numpy.typing import NDArray

# Letters and digits that rouge-score does not read; of accented Latin ones it reads what is left of their words.
_UNSEEN = regex.compile(r"[[\p{L}\p{N}]--[\p{Latin}0-9]]|[\uFF10-\uFF5A]", regex.V1)
_LETTERS = regex.compile(r"[\p{L}\p{N}]")
UNSEEN_SHARE = 1 / 3  # of a reference's letters: beyond it what is left of the text tells too little
BLIND = (
    "ROUGE reads only Latin letters and digits, which the reference lacks; exact_fact and judge read every script, "
    "entailment and cosine that of their model"
)
# Every byte that is no letter or digit becomes a space; upper case is gone before.
_WORDS_ONLY = bytes(byte if chr(byte).isascii() and chr(byte).isalnum() else 32 for byte in range(256))


@dataclasses.dataclass(frozen=True)
class RougeL:
    """Precision, recall and F1 of each pair: float64 [pairs] in [0, 1]."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def rouge_l(candidates: Sequence[str], references: Sequence[str], stemmer: bool = True) -> RougeL:
    """ROUGE-L of each candidate against its reference, with rouge-score's tokenizer and stemmer: [pairs].

    Texts without a word in [a-z0-9] score 0. Raises ValueError for unequal lengths. Source: Lin 2004, with beta = 1.
    """
    from rapidfuzz.distance.LCSseq import similarity

    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} references: they must be pairs")
    vocabulary = _Vocabulary(_stem_function() if stemmer else bytes)
    tokens = {text: vocabulary.tokens(text) for text in {*candidates, *references}}
    places: dict[tuple[str, str], int] = {}
    index = [places.setdefault(pair, len(places)) for pair in zip(candidates, references, strict=True)]
    compared = [(tokens[candidate], tokens[reference]) for candidate, reference in places]
    common = np.array([similarity(candidate, reference) for candidate, reference in compared], dtype=np.float64)
    lengths = np.array([(len(candidate), len(reference)) for candidate, reference in compared], dtype=np.float64)
    precision, recall = (common / np.maximum(lengths.reshape(-1, 2).T, 1))[:, index]
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)  # in rouge-score's order: the last bit agrees
    return RougeL(precision, recall, f1)


def is_blind_to(reference: str) -> bool:
    """Whether ROUGE cannot see a reference: it holds no word of [a-z0-9], or most of it is in another script."""
    if reference.isascii():
        return False
    seen = any(each.isascii() and each.isalnum() for each in reference.lower())
    return not seen or len(_UNSEEN.findall(reference)) > UNSEEN_SHARE * len(_LETTERS.findall(reference))


class _Vocabulary(dict[bytes, int]):
    """Word -> number of its stem, numbered as they come."""

    def __init__(self, stem: Callable[[bytes], bytes]) -> None:
        self.stem = stem
        self.numbers: dict[bytes, int] = {}

    def __missing__(self, word: bytes) -> int:
        # rouge-score leaves words of up to three letters alone; no stem of a longer one is empty
        stem = self.stem(word) if len(word) > 3 else word
        number = self[word] = self.numbers.setdefault(stem, len(self.numbers))
        return number

    def tokens(self, text: str) -> list[int]:
        """The text as rouge-score tokenises it: lower case, then words of [a-z0-9], then stems."""
        words = text.lower().encode("ascii", "replace").translate(_WORDS_ONLY).split()
        return list(map(self.__getitem__, words))


@functools.lru_cache(maxsize=1)
def _stem_function() -> Callable[[bytes], bytes]:
    """nltk's Porter stemmer as rouge-score uses it, remembering the words of this process."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    return functools.lru_cache(maxsize=2**18)(lambda word: stem(word.decode()).encode())
