"""Exact fact: whether the words of the fact stand, in order and whole, in the response."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORDS = re.compile(r"[^\W_]+")


def exact_fact(candidates: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """1.0 where the reference's words stand contiguously in the candidate, else 0.0: float64 [pairs].

    Case, punctuation, white space and Unicode form are folded; words match whole ("art" is not in "start"). Raises
    ValueError for unequal lengths and for a reference without any word.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} references: they must be pairs")
    pairs = list(zip(candidates, references, strict=True))
    found = {pair: _reference(pair[1]) in _normalised(pair[0]) for pair in set(pairs)}
    return np.array([found[pair] for pair in pairs], dtype=np.float64)


def _normalised(text: str) -> str:
    """Words in lower case with single spaces, and one at each end: substrings are whole words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return f" {' '.join(_WORDS.findall(text.casefold()))} "


@functools.lru_cache(maxsize=65536)
def _reference(text: str) -> str:
    words = _normalised(text)
    if not words.strip():
        raise ValueError(f"reference {text!r} holds no word to look for")
    return words
