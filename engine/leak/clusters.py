"""Which prompts belong together: the one source of truth for the authors or articles that prompts are about.

In: one label a prompt, or none; out: Clusters, which every interval, test and plan of this room counts by. Knows
nothing of scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.leak.estimator import Floats, Ints

Labels = Sequence[str | int | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of P prompts. of_prompt: int64 [P], the number of each prompt's cluster, 0..count - 1; sizes: int64
    [count], prompts of each."""

    of_prompt: Ints
    sizes: Ints

    @property
    def count(self) -> int:
        return len(self.sizes)

    @property
    def alone(self) -> bool:
        """Whether every prompt is a cluster of its own."""
        return self.count == len(self.of_prompt)

    def sums(self, values_PK: Floats) -> Floats:
        """The sum over each cluster's prompts: float64 [count, K]."""
        if self.alone:
            return values_PK
        order = np.argsort(self.of_prompt, kind="stable")
        return np.asarray(np.add.reduceat(values_PK[order], np.cumsum(self.sizes) - self.sizes, axis=0))

    def part(self, chosen: Ints | NDArray[np.bool_]) -> Clusters:
        """The same of some of the prompts, by index or mask."""
        return clusters_of(self.of_prompt[chosen].tolist(), len(self.of_prompt[chosen]))


def clusters_of(labels: Labels | None, prompts: int) -> Clusters:
    """The clusters that `labels`, one a prompt, name; a prompt whose label is None, or every prompt where there are no
    labels, is a cluster of its own. ValueError where their number is not that of the prompts."""
    if labels is None:
        return Clusters(np.arange(prompts), np.ones(prompts, dtype=np.int64))
    if len(labels) != prompts:
        raise ValueError(f"{len(labels)} cluster labels for {prompts} prompts: give one a prompt")
    names = [("", index) if label is None else ("label", label) for index, label in enumerate(labels)]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    of_prompt = np.array([number[name] for name in names], dtype=np.int64)
    if len(number) == prompts:
        of_prompt = np.arange(prompts)
    return Clusters(of_prompt, np.bincount(of_prompt))
