"""The results of an experiment, as plain typed records that go to JSON and back.

One source for the table, the report, the comparison and MLflow. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path, PurePosixPath

from engine.errors import UserError
from engine.reporting.formatting import Estimate, JsonObject

RESULTS_FILE = "results.json"


def generations_stage(decoding: str) -> str:
    """The name, in ModelResult.stages, of the samples under a decoding."""
    return f"generations {decoding}"


def scores_stage(decoding: str, metric: str) -> str:
    """The name, in ModelResult.stages, of the scores by a metric of the samples under a decoding."""
    return f"scores {decoding} {metric}"


def tally(failures: dict[str, int]) -> str:
    """Failures in one line, the most frequent first: "12 timeout, 3 HTTP 500"."""
    return ", ".join(f"{count} {why}" for why, count in sorted(failures.items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class Curve:
    """leak@k of one model on one group of probes, by one metric, under one decoding.

    k, leak, low, high: lists of one length; excess*: the same minus the retain model's, None without one; mean: leak@1.
    bound: upper bound on leak@k at the run's confidence, one-sided, valid where nothing leaked too. prompt_bound: upper
    bound on every prompt's own leak@k, all prompts at once. floor: lower bound from the exact probabilities of known
    answers (engine/stages/known_answers.py); far_floor: the same at larger k, by k. excess_p: one-sided p-value of
    "leaks more than the retain model". sampling_error, prompt_error: standard errors by source
    (engine/leak/variance.py). how: "sampled" n times a prompt, "adaptive" or "reweighted" from another decoding's
    samples. half_width: of the sampling error at the largest k, where sampling was planned for it. excluded: prompts
    left out, with too few samples that have a score. Each of these is None where it was not computed.
    """

    group: str
    metric: str
    decoding: str
    k: list[int]
    leak: list[float]
    low: list[float]
    high: list[float]
    mean: float
    prompts: int
    samples: int
    failed: int
    excess: list[float] | None = None
    excess_low: list[float] | None = None
    excess_high: list[float] | None = None
    bound: list[float] | None = None
    floor: list[float] | None = None
    prompt_bound: list[float] | None = None
    far_floor: dict[str, float] | None = None
    excess_p: list[float] | None = None
    sampling_error: list[float | None] | None = None
    prompt_error: list[float | None] | None = None
    how: str = "sampled"
    half_width: float | None = None
    excluded: int = 0

    def at(self, k: int) -> Estimate | None:
        """leak@k with its interval, None where k is none of the curve's."""
        if k not in self.k:
            return None
        index = self.k.index(k)
        return self.leak[index], self.low[index], self.high[index]

    def excess_at(self, k: int) -> Estimate | None:
        """The excess over the retain model at k with its interval, None without one."""
        if self.excess is None or self.excess_low is None or self.excess_high is None or k not in self.k:
            return None
        index = self.k.index(k)
        return self.excess[index], self.excess_low[index], self.excess_high[index]


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One row of the table.

    role: "target", "retain", "unlearned" or "control". greedy: mean core metric of greedy answers by group of probes.
    utility: in [0, 1], the benchmark's model utility where it defines one, else the greedy core metric on its utility
    group. metrics: what the benchmark's papers report beside leak@k, by name; None where there is no value, with the
    reason by name in missing. tokens: sampled in all, RULE's rounds included. seconds: of work for this model alone,
    over all workers. stages: folder of the model and of its generations and scores, below the store.
    failures: samples without a score by the core metric, by reason, at all decodings. notes: how it was sampled.
    beyond: leak@k above the number of samples, a record for each estimator of the experiment
    (engine/evaluation/beyond_n.py).
    """

    name: str
    role: str
    method: JsonObject
    greedy: dict[str, float]
    curves: list[Curve]
    utility: float
    tokens: int
    seconds: float
    steps: int = 0
    rounds: list[JsonObject] = dataclasses.field(default_factory=list)
    stages: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    beyond: list[JsonObject] = dataclasses.field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the row must know: samples without a score, which count as missing, and the notes."""
        missing = [f"samples without a score: {tally(self.failures)}"] if self.failures else []
        return missing + self.notes

    def curve(self, group: str, metric: str, decoding: str | None = None) -> Curve | None:
        """The curve of that group and metric (the first decoding's unless one is named)."""
        for curve in self.curves:
            if (curve.group, curve.metric) == (group, metric) and decoding in (None, curve.decoding):
                return curve
        return None


@dataclasses.dataclass(frozen=True)
class Results:
    """A whole experiment: its identity, its protocol, a row a model, and what failed (label -> one line)."""

    name: str
    fingerprint: str
    benchmark: JsonObject
    core_metric: str
    leak_group: str
    confidence: float
    models: list[ModelResult]
    failed: dict[str, str]
    seconds: float
    experiment: JsonObject

    @property
    def retain(self) -> ModelResult | None:
        """The retain model's row, where one was measured."""
        return next((model for model in self.models if model.role == "retain"), None)

    @property
    def headline(self) -> list[tuple[ModelResult, Curve]]:
        """Each model with its curve on the benchmark's leak group by the core metric."""
        return [
            (model, curve)
            for model in self.models
            if (curve := model.curve(self.leak_group, self.core_metric)) is not None
        ]

    @property
    def judged(self) -> list[tuple[ModelResult, Curve]]:
        """The models that a verdict is about: what was unlearned, or the given model where nothing was."""
        unlearned = [row for row in self.headline if row[0].role in ("unlearned", "control")]
        return unlearned or [row for row in self.headline if row[0].role != "retain"]

    @property
    def has_excess(self) -> bool:
        """Whether a retain model was measured beside the others."""
        return any(curve.excess is not None for model, curve in self.headline if model.role != "retain")

    def write(self, folder: Path) -> None:
        """Write results.json into `folder`, atomically."""
        from engine.store.files import write_atomic

        write_atomic(folder / RESULTS_FILE, json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False))


def groups(results: Results) -> list[str]:
    """The groups of forget prompts, the headline's first."""
    names = dict.fromkeys(curve.group for model in results.models for curve in model.curves)
    return sorted(names, key=lambda group: group != results.leak_group)


def read_results(run: Path | str) -> Results:
    """The results of a run folder (or of its results.json). UserError where there is none or it is not whole."""
    path = Path(run)
    path = path / RESULTS_FILE if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        models = [
            ModelResult(**{**model, "curves": [Curve(**curve) for curve in model["curves"]]}) for model in raw["models"]
        ]
        results = Results(**{**raw, "models": models})
        _check_names(results)
        return results
    except FileNotFoundError as error:
        raise UserError(f"{run}: no results there; give a run's folder (`leakatk run` prints it)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a results file of leakatk ({type(error).__name__}: {error})") from error


def _check_names(results: Results) -> None:
    """ValueError where a name that becomes part of a path could lead out of its folder: the file may be another's."""
    names = [results.name, results.leak_group, results.core_metric]
    for model in results.models:
        names += [model.name, *(part for curve in model.curves for part in (curve.group, curve.metric, curve.decoding))]
        for stage, path in model.stages.items():
            parts = PurePosixPath(path)
            if stage != "model" and (parts.is_absolute() or ".." in parts.parts):  # the model may be anywhere
                raise ValueError(f"the folder of {stage!r} is not in the store: {path!r}")
    for name in names:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"{name[:80]!r} is not a name")
