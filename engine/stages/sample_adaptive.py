"""Adaptive sampling of a model, as stages: a pilot of every prompt, then only the samples that its rule asks for.

A sampling job, a metric and the wanted half-width come in; leak@k of each prompt and what it cost come out. Each round
is a finished stage of its own, so that a kill loses nothing that is complete. What to draw is decided in
engine/leak/adaptive.py; knows nothing of how.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import counted, unit_counts, unit_seconds
from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.leak.adaptive import AdaptiveLeak, Drawn, Request, adaptive_leak, wanted
from engine.leak.stopping import Rule
from engine.models.loading import cached_model
from engine.stages.base import Stage
from engine.stages.known_answers import known_answers
from engine.stages.sample import SampleJob, read_units, sample_probes, samples_table
from engine.store.manifest import Json

SEQUENTIAL_VERSION = 1  # part of every stage's fingerprint: raise it when the samples or what is noted with them change
UNIT_PROMPTS = 16
TOP = 1.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """One prompt's request (engine.leak.adaptive.Request) in plain values: the known answers' token ids, the rule, the
    residual scores so far."""

    known: tuple[tuple[int, ...], ...]
    top_scores: int
    samples: int
    residual: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class SequentialJob(Stage):
    """More samples of each of `sampling`'s probes until its request is met, scored by a metric as they come.

    sampling.seed: of this round alone. Samples without a score are left out of the count, and counted as failed.
    """

    sampling: SampleJob
    asked: tuple[Asked, ...]
    metric: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "sequential"
    title: ClassVar[str] = "sample on"

    @property
    def units(self) -> int:
        return -(-len(self.asked) // UNIT_PROMPTS)

    def inputs(self) -> Json:
        return self.sampling.prompting() | {
            "seed": self.sampling.seed,
            "asked": fingerprint([dataclasses.asdict(each) for each in self.asked]),
            "metric": self.metric,
            "options": self.options,
            "version": SEQUENTIAL_VERSION,
        }

    def run(self, work: Path, report: Report) -> Json:
        """Fill `work/units`; returns tokens and seconds of work."""
        fan_out(self, self.units, work / "units", report, self.sampling.workers, self.sampling.gpus)
        counts = unit_counts(work / "units")
        return {"tokens": counts.get("tokens", 0), "seconds": unit_seconds(work / "units")}

    def compute(self, unit: int) -> tuple[Any, str]:
        """One row a sample, in each prompt's order: the columns of a sampling, and its score."""
        import pyarrow
        import torch

        on_gpu = self.sampling.gpus > 0
        if not on_gpu:
            torch.set_num_threads(1)
        device, precision = ("cuda", "bf16") if on_gpu else ("cpu", "fp32")
        model, tokenizer = cached_model(self.sampling.model, device, precision)
        part = slice(unit * UNIT_PROMPTS, (unit + 1) * UNIT_PROMPTS)
        probes, asked = self.sampling.probes[part], self.asked[part]
        requests = [_request(index, each) for index, each in enumerate(asked)]
        drawn = [Drawn(np.empty(0), [], np.empty(0)) for _ in probes]
        tables: list[Any] = []
        turn, limit = 0, 4 * max(each.samples for each in asked)
        while any(counts := [wanted(request, so_far, TOP) for request, so_far in zip(requests, drawn, strict=True)]):
            if turn > limit:
                raise RuntimeError(f"adaptive sampling does not end: {turn} turns; does the metric fail on everything?")
            for count in sorted(set(counts) - {0}):
                chosen = [index for index, each in enumerate(counts) if each == count]
                # Each turn has samples of its own: its seed, as every sample's, is a pure function of the job.
                job = dataclasses.replace(self.sampling, n=count, seed=_seed(self.sampling.seed, f"turn {turn}"))
                samples = sample_probes(model, tokenizer, tuple(probes[index] for index in chosen), job)
                table = samples_table(tuple(probes[index] for index in chosen), samples, tokenizer, job.max_new_tokens)
                table = table.append_column("score", pyarrow.array(_scores(table, self.metric, self.options)))
                for place, index in enumerate(chosen):
                    rows = table.slice(place * count, count)
                    tables.append(rows)
                    drawn[index] += _drawn(rows)
            turn += 1
        table = pyarrow.concat_tables(tables).combine_chunks()
        order = {probe.id: place for place, probe in enumerate(probes)}
        places = [order[each] for each in table["prompt_id"].to_pylist()]
        table = table.take(np.argsort(places, kind="stable"))
        return counted(table, {"tokens": sum(table["tokens"].to_pylist())}), ""


def _request(index: int, asked: Asked) -> Request:
    rule = Rule(asked.top_scores, asked.samples)
    return Request(index, frozenset(asked.known), rule, np.array(asked.residual, dtype=np.float64))


def _seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:7], "little")


def _scores(table: Any, metric: str, options: dict[str, Any]) -> list[float | None]:
    from engine.metrics import METRICS, score_counted

    references = table["reference"].to_pylist()
    if METRICS[metric].reads_fact:
        references = [fact or each for fact, each in zip(table["fact"].to_pylist(), references, strict=True)]
    return score_counted(
        metric, table["response"].to_pylist(), references, table["prompt"].to_pylist(), **options
    ).scores


def _drawn(rows: Any) -> Drawn:
    """The rows with a score as Drawn."""
    scores = rows["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    valid = ~np.isnan(scores)
    tokens = [tuple(each) for each in rows["token_ids"].to_pylist()]
    return Drawn(
        scores[valid],
        [each for each, keep in zip(tokens, valid, strict=True) if keep],
        rows["logprob"].to_numpy()[valid],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Sequential:
    """What adaptive sampling found of one group of prompts. means: mean pilot score of each; failed: samples without a
    score; tokens, seconds: of the samples beyond the pilot; folders: of their rounds."""

    leak: AdaptiveLeak
    means: np.ndarray
    failed: int
    tokens: int
    seconds: float
    folders: list[Path]


@dataclasses.dataclass(frozen=True)
class Pilot:
    """A finished pilot: its job (every prompt, n = the pilot's samples), and the folders of its generations, of their
    scores and of the known answers. k: ascending."""

    job: SampleJob
    generations: Path
    scores: Path
    answers: Path
    metric: str
    options: dict[str, Any]
    k: tuple[int, ...]


def sample_on(
    pilot: Pilot,
    group: str,
    half_width: float,
    confidence: float,
    max_samples: int,
    run: Callable[[SequentialJob], Any],
) -> Sequential:
    """Sample one group's prompts on from their pilot until leak@k at the largest k is known to +- half_width.

    run: builds or finds the stage of a job. UserError where a prompt's pilot has too few samples with a score.
    """
    probes = [probe for probe in pilot.job.probes if probe.group == group]
    pilots, failed = _pilots(pilot, group, [probe.id for probe in probes])
    short = next((probe.id for probe, each in zip(probes, pilots, strict=True) if len(each.scores) < 4), None)
    if short is not None:
        raise UserError(f"sampling.adaptive: prompt {short} has fewer than 4 pilot samples with a score; raise `pilot`")
    rounds: list[Any] = []
    lost = [failed]

    def draw_until(requests: Sequence[Request]) -> list[Drawn]:
        chosen = tuple(probes[each.index] for each in requests)
        asked = tuple(
            Asked(
                tuple(sorted(each.known)),  # type: ignore[arg-type]  # token ids, which is what answers are here
                each.rule.top_scores,
                each.rule.samples,
                tuple(each.residual.tolist()),
            )
            for each in requests
        )
        seed = _seed(pilot.job.seed, f"round {len(rounds)} of {group}")
        sampling = dataclasses.replace(pilot.job, probes=chosen, n=1, seed=seed)
        stage = run(SequentialJob(sampling, asked, pilot.metric, pilot.options))
        rounds.append(stage)
        drawn, missing = _read_drawn(stage.path, [probe.id for probe in chosen])
        lost.append(missing)
        return drawn

    given = known_answers(pilot.answers).get(group, {})
    found = adaptive_leak(
        lambda n: pilots,
        draw_until,
        pilot.k,
        half_width,
        confidence,
        pilot.job.n,
        max_samples,
        TOP,
        [given[probe.id].with_score(TOP) if probe.id in given else {} for probe in probes],
    )
    return Sequential(
        leak=found,
        means=np.array([each.scores.mean() for each in pilots]),
        failed=sum(lost),
        tokens=sum(stage.facts["tokens"] for stage in rounds),
        seconds=sum(stage.facts["seconds"] for stage in rounds),
        folders=[stage.path for stage in rounds],
    )


def _pilots(pilot: Pilot, group: str, prompt_ids: list[str]) -> tuple[list[Drawn], int]:
    table = read_units(pilot.generations, ["prompt_id", "group", "token_ids", "logprob"])
    table = table.append_column("score", read_units(pilot.scores, ["score"])["score"])
    chosen = np.array(table["group"].to_pylist()) == group
    return _by_prompt(table.filter(chosen), prompt_ids)


def _read_drawn(folder: Path, prompt_ids: list[str]) -> tuple[list[Drawn], int]:
    """The samples of a round by prompt, in the order of the ids, and how many have no score."""
    return _by_prompt(read_units(folder, ["prompt_id", "token_ids", "logprob", "score"]), prompt_ids)


def _by_prompt(table: Any, prompt_ids: list[str]) -> tuple[list[Drawn], int]:
    ids = np.array(table["prompt_id"].to_pylist())
    found = [_drawn(table.take(np.flatnonzero(ids == prompt_id))) for prompt_id in prompt_ids]
    return found, table.num_rows - sum(len(each.scores) for each in found)
