"""Intervals and p-values of many means and differences at once: one costs as much as all that are of its kind.

Means and differences of two Means come in (engine/leak/intervals.py), arrays of float64 [K] of each come out, in their
order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from engine.leak.estimator import Floats
from engine.leak.intervals import Difference, Mean

Some = TypeVar("Some", Mean, Difference)
Arrays = tuple[Floats, ...]


def ends_of_means(means: Sequence[Mean], tail: float) -> list[Arrays]:
    """Mean.ends of each, (low, high)."""
    return _at_once(means, _kind, _joined_means, lambda mean: mean.ends(tail))


def ends_and_p_values(differences: Sequence[Difference], confidence: float) -> list[Arrays]:
    """The ends of each difference's interval and its p-value, (low, high, p)."""
    return _at_once(
        differences,
        lambda each: (str(each.degrees), *map(_kind, _means(each))),
        _joined_differences,
        lambda each: (*each.ends(1 - confidence), each.p_value(confidence)),
    )


def _at_once(
    every: Sequence[Some],
    kind: Callable[[Some], Hashable],
    joined: Callable[[Sequence[Some]], Some],
    computed: Callable[[Some], Arrays],
) -> list[Arrays]:
    """What is computed of each, those of one kind joined, their columns one after the other."""
    alike: dict[Hashable, list[int]] = {}
    for index, each in enumerate(every):
        alike.setdefault(kind(each), []).append(index)
    found: dict[int, Arrays] = {}
    for indices in alike.values():
        some = [every[index] for index in indices]
        parts = np.cumsum([len(each.value) for each in some])[:-1]
        arrays = [np.split(array, parts) for array in computed(joined(some))]
        found |= zip(indices, zip(*arrays, strict=True), strict=True)
    return [found[index] for index in range(len(every))]


def _kind(mean: Mean) -> Hashable:
    return str(mean.degrees), mean.power, mean.curve  # degrees as text, for NaN is not equal to itself


def _means(difference: Difference) -> tuple[Mean, Mean]:
    first, second = difference.first, difference.second
    assert isinstance(first, Mean)
    assert isinstance(second, Mean)
    return first, second


def _joined_means(means: Sequence[Mean]) -> Mean:
    return dataclasses.replace(
        means[0],
        value=np.concatenate([each.value for each in means]),
        error=np.concatenate([each.error for each in means]),
        units=np.concatenate([np.broadcast_to(each.units, each.value.shape) for each in means]),
    )


def _joined_differences(differences: Sequence[Difference]) -> Difference:
    first, second = (_joined_means(means) for means in zip(*map(_means, differences), strict=True))
    correlation = np.concatenate([each.correlation for each in differences])
    error = np.concatenate([each.error for each in differences])
    return Difference(first, second, correlation, error, differences[0].degrees)
