"""Successive unlearning requests: which forget examples each one names, and what an evaluation says of those so far.

A benchmark and the requests' sizes come in; parts of the forget set and restricted evaluations come out. Knows nothing
of methods or training.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.base import Benchmark, Example, is_leak_group
from engine.errors import UserError
from engine.evaluation.evaluate import Evaluation, Leaks
from engine.stages.score import GroupScores


@dataclasses.dataclass(frozen=True)
class Requests:
    """examples: the forget examples of each request, in order; of_probe: the request (from 0) of each forget probe."""

    examples: tuple[tuple[Example, ...], ...]
    of_probe: dict[str, int]

    def names(self, group: str, upto: int) -> dict[str, range]:
        """Groups to report once the requests 0..upto were made, and the requests that each one covers."""
        return {group: range(upto + 1)} | {
            f"{group}.request{each + 1}": range(each, each + 1) for each in range(upto + 1)
        }


def split_requests(benchmark: Benchmark, sizes: Sequence[int]) -> Requests:
    """The forget set cut into requests of `sizes` examples. UserError unless they add up, and probes know theirs."""
    forget = benchmark.forget
    if sum(sizes) != len(forget):
        raise UserError(
            f"requests: {sum(sizes)} examples in all, but the forget set has {len(forget)}; make them equal"
        )
    ends = np.cumsum(sizes)
    examples = tuple(tuple(forget[end - size : end]) for size, end in zip(sizes, ends, strict=True))
    of_example = {each.id: number for number, part in enumerate(examples) for each in part}
    of_probe = {}
    for probe in benchmark.probes:
        if is_leak_group(probe.group):
            # A paraphrase's id is that of its example with something after a slash.
            number = of_example.get(probe.id, of_example.get(probe.id.rpartition("/")[0]))
            if number is None and not any(each.question for each in forget):
                number = 0  # about running text: what the first request takes away
            if number is None:
                raise UserError(f"requests: benchmark {benchmark.name} does not say which example {probe.id} is about")
            of_probe[probe.id] = number
    return Requests(examples, of_probe)


def judged_on(
    requests: Requests | None,
    benchmark: Benchmark,
    request: int | None,
    evaluation: Evaluation,
    baseline: Evaluation | None,
) -> tuple[Benchmark, Evaluation, Evaluation | None]:
    """What a model is judged on that `request` left (None: all of them): where there are several, what was asked so
    far, of it and of the retain model."""
    if requests is None:
        return benchmark, evaluation, baseline
    upto = len(requests.examples) - 1 if request is None else request
    beside = restricted(baseline, requests, upto) if baseline is not None else None
    return restricted_benchmark(benchmark, requests, upto), restricted(evaluation, requests, upto), beside


def restricted(evaluation: Evaluation, requests: Requests, upto: int) -> Evaluation:
    """The evaluation with its leak groups cut to the requests 0..upto, and each of these as a group of its own."""
    leaks: Leaks = {}
    for (group, metric, decoding), values in evaluation.leaks.items():
        for name, chosen in _parts(group, evaluation.prompt_ids[group], requests, upto).items():
            leaks[name, metric, decoding] = values.part(chosen)
    greedy = {}
    for (group, metric), answers in evaluation.greedy.items():
        if not is_leak_group(group):
            greedy[group, metric] = answers
            continue
        for name, chosen in _parts(group, answers.prompt_ids, requests, upto).items():
            ids = [answers.prompt_ids[index] for index in chosen]
            greedy[name, metric] = GroupScores(ids, answers.scores[chosen])
    known, prompt_ids = {}, {}
    for group, ids in evaluation.prompt_ids.items():
        for name, chosen in _parts(group, ids, requests, upto).items():
            prompt_ids[name] = [ids[index] for index in chosen]
            for (of, metric, decoding), outcomes in evaluation.known.items():
                if of == group:
                    known[name, metric, decoding] = [outcomes[index] for index in chosen]
    return dataclasses.replace(evaluation, leaks=leaks, greedy=greedy, prompt_ids=prompt_ids, known=known)


def restricted_benchmark(benchmark: Benchmark, requests: Requests, upto: int) -> Benchmark:
    """The benchmark with its forget set and the probes about it cut to the requests 0..upto."""
    cut = copy.copy(benchmark)
    cut.forget = [example for part in requests.examples[: upto + 1] for example in part]
    cut.probes = [probe for probe in benchmark.probes if requests.of_probe.get(probe.id, 0) <= upto]
    return cut


def _parts(group: str, prompt_ids: list[str], requests: Requests, upto: int) -> dict[str, np.ndarray]:
    """Which of a leak group's prompts each group to report has, by index; groups without any are left out."""
    number = np.array([requests.of_probe[each] for each in prompt_ids])
    found = {
        name: np.flatnonzero(np.isin(number, list(covered))) for name, covered in requests.names(group, upto).items()
    }
    return {name: chosen for name, chosen in found.items() if chosen.size}
