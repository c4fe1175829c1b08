"""Exact fact: whether the words of the fact stand, in order and whole, in the response."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.metrics.words import is_hangul, words

# Korean particles and endings of "to be", one after the other: what may follow a name within its word.
PARTICLES = (
    "(?:이었습니다|이었다|였습니다|입니다|이에요|예요|이라고|라고|이라는|라는|에서|에게|께서|한테|부터|까지|으로|처럼|보다|이며|이고|이나|였다|이다"
    "|은|는|이|가|을|를|의|에|도|로|와|과|만|나|며|고|다|씨|님|시)*"
)


def exact_fact(candidates: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """1.0 where the reference's words stand contiguously in the candidate, else 0.0: float64 [pairs].

    Case, punctuation, white space and Unicode form are folded; words match whole ("art" is not in "start"), a Korean
    one with the particles after it. In scripts without spaces a word is a letter with its marks, so that a fact is
    found inside a sentence. Raises ValueError for unequal lengths and for a reference without any word.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} references: they must be pairs")
    pairs = list(zip(candidates, references, strict=True))
    found = {pair: _stands_in(_reference(pair[1]), _spaced(pair[0])) for pair in set(pairs)}
    return np.array([found[pair] for pair in pairs], dtype=np.float64)


def _stands_in(fact: str, response: str) -> bool:
    if fact in response:
        return True
    if fact.isascii() or not is_hangul(fact.split()[-1]):
        return False
    return re.search(f"{re.escape(fact[:-1])}{PARTICLES} ", response) is not None


def _spaced(text: str) -> str:
    """The words with single spaces, and one at each end: substrings are whole words."""
    return f" {' '.join(words(text))} "


@functools.lru_cache(maxsize=65536)
def _reference(text: str) -> str:
    fact = _spaced(text)
    if not fact.strip():
        raise ValueError(f"reference {text!r} holds no word to look for")
    return fact
