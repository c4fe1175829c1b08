"""How much of an answer a model has memorised, from its argmax under teacher forcing.

Token ids come in, a row an item, of any lengths or padded with label -100; one float an item comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORED = -100


def extraction_strength(predicted: Sequence[ArrayLike], labels: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """1 - k/L, k the shortest prefix of the L labelled tokens after which every argmax is right, in [0, 1]: [items].

    predicted: the argmax at each labelled token, given the true tokens before it. 1: the whole answer follows from the
    prompt; 0: not even the last token follows. NaN for an item without labelled tokens.
    Source: Carlini et al. 2021, arXiv 2012.07805, in the teacher-forced form of arXiv 2407.06460.
    """
    return np.array([_strength(right) for right in _right(predicted, labels)], dtype=np.float64)


def exact_memorization(predicted: Sequence[ArrayLike], labels: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Share of the labelled tokens that the argmax gets right, in [0, 1]: [items]; NaN without labelled tokens.

    Source: Tirumala et al. 2022, arXiv 2205.10770.
    """
    return np.array([right.mean() if right.size else np.nan for right in _right(predicted, labels)], dtype=np.float64)


def _strength(right: NDArray[np.bool_]) -> float:
    if not right.size:
        return float("nan")
    wrong = np.flatnonzero(~right)
    return 1 - (wrong[-1] + 1) / right.size if wrong.size else 1.0


def _right(predicted: Sequence[ArrayLike], labels: Sequence[ArrayLike]) -> list[NDArray[np.bool_]]:
    """Whether the argmax is right, at the labelled tokens of each item."""
    found = []
    for guess, label in zip(predicted, labels, strict=True):
        guess, label = np.asarray(guess), np.asarray(label)
        if guess.shape != label.shape:
            raise ValueError(f"predicted and labels must have the same lengths, found {guess.shape} and {label.shape}")
        kept = label != IGNORED
        found.append(guess[kept] == label[kept])
    return found
