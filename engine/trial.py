"""One trial of a search: unlearn at one point of the space, then look at the model, cheaply first.

A point and the search's Setting come in; reports of what was seen come out, rung by rung, each with an interval. Runs
in a process of its own on the cluster and calls the same stages as everything else: a trial that was cut off finds what
it had finished. Knows nothing of other trials.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark, Decoding, Probe
from engine import cluster
from engine.errors import DivergedError
from engine.evaluate import decoding_name, job_for, score
from engine.experiment import Experiment
from engine.leak import leak_curve
from engine.maker import Made, Maker
from engine.models import ModelSource
from engine.progress import Progress
from engine.scoring import group_scores
from engine.spaces import Rung, Space
from engine.stages import Stages
from engine.store import Store

WORST = 2.0  # the objective of a trial that failed: above every leak@k


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all trials of a search share. experiment: with its protocol and devices filled in; least_utility: below it a
    trial cannot win; group, metric: what the objective is taken on."""

    experiment: Experiment
    space: Space
    store: str
    least_utility: float
    group: str
    metric: str

    @property
    def decoding(self) -> Decoding:
        """The decoding that the objective is taken at: the first that samples."""
        return next((each for each in self.experiment.sampling.decoding or () if each.temperature > 0), Decoding())

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The space's rungs and the full look after them."""
        return (*self.space.rungs, Rung(n=self.experiment.sampling.n or 1))


@dataclasses.dataclass(frozen=True)
class Look:
    """leak@k of one look with its interval, at the largest k that its n samples allow; tokens: sampled for it."""

    k: int
    leak: float
    low: float
    high: float
    tokens: int


def trial(config: dict[str, Any], setting: Setting) -> None:
    """Ray Tune's trainable: one report a look."""
    from ray import tune

    for report in looks(config, setting):
        tune.report(report)


def looks(values: dict[str, Any], setting: Setting) -> Iterator[dict[str, Any]]:
    """Train and look: a report for each rung, the last one in full. A failure is a report with its cause."""
    cluster.data_context()
    with Progress(quiet=True) as progress:
        stages = Stages(Store(Path(setting.store)), progress, setting.experiment.sampling.workers, lambda: None)
        benchmark = BENCHMARKS[setting.experiment.benchmark.name].load(**setting.experiment.benchmark.options)
        try:
            yield from _looks(values, setting, stages, benchmark)
        except DivergedError as error:
            yield failure(str(error))
        except Exception as error:  # one trial's failure must not end the search
            yield failure(f"{type(error).__name__}: {error}")


def failure(cause: str) -> dict[str, Any]:
    """The report of a trial that came to nothing."""
    seen = {"rung": -1, "n": 0, "k": 0, "leak": WORST, "low": WORST, "high": WORST, "greedy": float("nan")}
    judged = {"utility": 0.0, "value": WORST, "feasible": False, "full": False, "tokens": 0}
    return seen | judged | {"failed": " ".join(cause.split())[:300]}


def _looks(values: dict[str, Any], setting: Setting, stages: Stages, benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    models = unlearned(values, setting, stages, benchmark)
    greedy = [_greedy(setting, stages, benchmark, model.source) for model in models]
    utility = float(np.mean([each[1] for each in greedy]))
    feasible = utility >= setting.least_utility
    tokens = sum(each[2] for each in greedy)
    for number, rung in enumerate(setting.rungs):
        seen = [look(setting, stages, benchmark, model.source, rung) for model in models]
        tokens += sum(each.tokens for each in seen)
        leak = float(np.mean([each.leak for each in seen]))
        yield {
            "rung": number,
            "n": rung.n,
            "k": seen[0].k,
            "leak": leak,
            "low": float(np.mean([each.low for each in seen])),
            "high": float(np.mean([each.high for each in seen])),
            "greedy": float(np.mean([each[0] for each in greedy])),
            "utility": utility,
            # A trial below the least utility is worse than any other, the more so the less it has.
            "value": leak if feasible else 1.0 + setting.least_utility - utility,
            "feasible": feasible,
            "full": number == len(setting.rungs) - 1,
            "tokens": tokens,
            "failed": "",
        }


def unlearned(values: dict[str, Any], setting: Setting, stages: Stages, benchmark: Benchmark) -> list[Made]:
    """The models at one point, one for each of the space's seeds, from the one target model."""
    experiment, section = setting.experiment, setting.space.section(values)
    target = Maker(experiment, benchmark, stages).target()
    made = []
    for seed in range(setting.space.seeds):
        maker = Maker(experiment.model_copy(update={"seed": experiment.seed + seed}), benchmark, stages)
        made.append(maker.unlearned(section.name, section, tuple(benchmark.forget), 0, target))
    return made


def look(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource, rung: Rung) -> Look:
    """leak@k of one model on the prompts that decide, at one rung."""
    chosen = deciding(benchmark.group(setting.group), setting.experiment.seed)
    chosen = chosen[: max(1, round(rung.prompts * len(chosen)))]
    job = job_for(setting.experiment, model, chosen, setting.decoding, rung.n, setting.experiment.seed)
    sampled = stages.sample("trial", job)
    scored = score(stages, setting.experiment, "trial", sampled, setting.metric)
    k = min(setting.space.objective.k, rung.n)
    scores = group_scores(scored.path)[setting.group].scores
    curve = leak_curve(scores, [k], setting.experiment.leak.confidence, seed=setting.experiment.seed)
    return Look(k, float(curve.leak[0]), float(curve.low[0]), float(curve.high[0]), sampled.facts["tokens"])


def _greedy(setting: Setting, stages: Stages, benchmark: Benchmark, model: ModelSource) -> tuple[float, float, int]:
    """Greedy core metric on the objective's group, greedy utility, and the tokens that they took."""
    protocol = benchmark.protocol
    probes = benchmark.group(setting.group) + benchmark.group(protocol.utility_group)
    job = job_for(setting.experiment, model, probes, Decoding(temperature=0.0), 1, setting.experiment.seed)
    sampled = stages.sample(f"trial {decoding_name(job.decoding)}", job)
    groups = group_scores(score(stages, setting.experiment, "trial", sampled, protocol.core_metric).path)
    found = [float(np.nanmean(groups[name].scores)) for name in (setting.group, protocol.utility_group)]
    return found[0], found[1], sampled.facts["tokens"]


def entity(probe: Probe) -> str:
    """What a prompt is about, as far as its id tells: author54 of author54/birthdate/paraphrase, else the id."""
    first, slash, _ = probe.id.partition("/")
    return first if slash and any(each.isdigit() for each in first) and not first.startswith("forget") else probe.id


def deciding(probes: list[Probe], seed: int) -> list[Probe]:
    """The half of the prompts that a search decides on; by whole entities where the ids tell them, and in an order that
    makes the first few a sample of all. The other half is kept for the report."""
    names = sorted({entity(each) for each in probes}, key=lambda name: _rank(seed, name))
    half = set(names[: max(1, len(names) // 2)])
    return sorted((each for each in probes if entity(each) in half), key=lambda each: _rank(seed, each.id))


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
