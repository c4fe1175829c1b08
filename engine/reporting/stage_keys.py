"""Names of a model's stage folders in results.json: the one place that writes and reads them.

A decoding's name, a metric and which round of drawing samples come in, a key comes out. Knows nothing of the folders.
"""

from __future__ import annotations

MODEL = "model"
LIKELIHOODS = "likelihoods"


def generations_key(decoding: str, number: int = 1) -> str:
    """The generations at one decoding; number: of the round, from 1, where there are several."""
    return f"generations {decoding}{_round(number)}"


def scores_key(decoding: str, metric: str, number: int = 1) -> str:
    """Their scores by one metric."""
    return f"scores {decoding} {metric}{_round(number)}"


def answers_key(decoding: str) -> str:
    """The known answers at one decoding."""
    return f"answers {decoding}"


def _round(number: int) -> str:
    return "" if number == 1 else f" round {number}"
