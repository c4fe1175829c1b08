"""p-values of many differences at once: one costs as much as all that are of its kind.

Differences of two Means come in (engine/leak/intervals.py), float64 [K] of each comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from engine.leak.estimator import Floats
from engine.leak.intervals import Difference, Mean


def p_values(differences: Sequence[Difference], confidence: float) -> list[Floats]:
    """Difference.p_value of each of these differences of Means, in their order."""
    alike: dict[str, list[int]] = {}
    for index, each in enumerate(differences):
        kind = [each.degrees, *((mean.degrees, mean.power, mean.curve) for mean in _means(each))]
        alike.setdefault(str(kind), []).append(index)
    found: dict[int, Floats] = {}
    for indices in alike.values():
        some = [differences[index] for index in indices]
        ends = np.cumsum([len(each.value) for each in some])
        values = np.split(_one_after_the_other(some).p_value(confidence), ends[:-1])
        found |= zip(indices, values, strict=True)
    return [found[index] for index in range(len(differences))]


def _means(difference: Difference) -> tuple[Mean, Mean]:
    first, second = difference.first, difference.second
    assert isinstance(first, Mean)
    assert isinstance(second, Mean)
    return first, second


def _one_after_the_other(differences: Sequence[Difference]) -> Difference:
    """The columns of differences of one kind as those of one."""
    first, second = (
        dataclasses.replace(
            every[0],
            value=np.concatenate([each.value for each in every]),
            error=np.concatenate([each.error for each in every]),
            units=np.concatenate([np.broadcast_to(each.units, each.value.shape) for each in every]),
        )
        for every in zip(*map(_means, differences), strict=True)
    )
    correlation = np.concatenate([each.correlation for each in differences])
    error = np.concatenate([each.error for each in differences])
    return Difference(first, second, correlation, error, differences[0].degrees)
