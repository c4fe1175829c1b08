"""Which prompts a search decides on, and which are held out for its report.

Probes and a seed come in, probes come out. Knows nothing of trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from benchmarks.base import Probe


def deciding_prompts(probes: Iterable[Probe], seed: int) -> list[Probe]:
    """The half of the prompts that a search decides on; by whole subjects where the ids tell several, and in an order
    that makes the first few a sample of all. The other half is held out."""
    subjects = {probe.id: subject(probe) for probe in probes}
    if len(set(subjects.values())) == 1:
        subjects = {name: name for name in subjects}
    ranked = sorted(set(subjects.values()), key=lambda name: rank(seed, name))
    half = set(ranked[: max(1, len(ranked) // 2)])
    return shuffled([probe for probe in probes if subjects[probe.id] in half], seed)


def shuffled(probes: Iterable[Probe], seed: int) -> list[Probe]:
    """The probes in an order that their ids and the seed alone fix."""
    return sorted(probes, key=lambda probe: rank(seed, probe.id))


def subject(probe: Probe) -> str:
    """What a prompt is about, as far as its id tells: author54 of author54/birthdate/paraphrase, else the id."""
    first, slash, _ = probe.id.partition("/")
    return first if slash and any(map(str.isdigit, first)) and not first.startswith("forget") else probe.id


def rank(seed: int, name: str) -> bytes:
    """A random key of a name, the same on every machine."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
