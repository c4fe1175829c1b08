"""How much of answers a model has memorised, from its argmax under teacher forcing.

Token ids come in, of one answer or a row an answer, of any lengths or padded with label -100; one float comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORED = -100
Tokens = ArrayLike | Sequence[ArrayLike]


def extraction_strength(predicted: Tokens, labels: Tokens) -> float:
    """1 - k/L, k the shortest prefix of the L labelled tokens after which every argmax is right, in [0, 1].

    predicted, labels: [tokens] of one answer, or a row for each of several, whose mean it is then; predicted is the
    argmax at each labelled token, given the true tokens before it. 1: the whole answer follows from the prompt; 0: not
    even the last token follows. NaN where no answer has a labelled token; the others are left out.
    Source: Carlini et al. 2021, arXiv 2012.07805, in the teacher-forced form of arXiv 2407.06460.
    """
    return _mean(_strength, predicted, labels)


def exact_memorization(predicted: Tokens, labels: Tokens) -> float:
    """Share of an answer's labelled tokens that the argmax gets right, in [0, 1]; as `extraction_strength` otherwise.

    Source: Tirumala et al. 2022, arXiv 2205.10770.
    """
    return _mean(lambda right: float(right.mean()), predicted, labels)


def _mean(score: Callable[[NDArray[np.bool_]], float], predicted: Any, labels: Any) -> float:
    one = len(labels) > 0 and np.ndim(labels[0]) == 0
    rights = [_right(predicted, labels)] if one else [_right(*pair) for pair in zip(predicted, labels, strict=True)]
    scores = [score(right) for right in rights if right.size]
    return float(np.mean(scores)) if scores else float("nan")


def _strength(right: NDArray[np.bool_]) -> float:
    wrong = np.flatnonzero(~right)
    return 1 - (int(wrong[-1]) + 1) / right.size if wrong.size else 1.0


def _right(predicted: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether the argmax is right, at the labelled tokens of one answer."""
    guess, label = np.asarray(predicted), np.asarray(labels)
    if guess.shape != label.shape:
        raise ValueError(f"predicted and labels must have the same lengths, found {guess.shape} and {label.shape}")
    kept = label != IGNORED
    return guess[kept] == label[kept]
