"""The results of an experiment, as plain typed records that go to JSON and back.

One source for the table, the report, the comparison and MLflow. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, SupportsIndex, overload

from engine.errors import UserError, known
from engine.jsonl import JsonObject, JsonValue
from engine.reporting.records import AttackResult, BeyondEstimate, Curve, Intervals, RuleRound

if TYPE_CHECKING:
    import pandas

RESULTS_FILE = "results.json"
GREEDY = "greedy"  # Decoding.name of greedy decoding


def generations_stage(decoding: str, number: int = 1) -> str:
    """The name, in ModelResult.stages, of the samples under a decoding; number: of the round that drew them."""
    return f"generations {decoding}" + (f" round {number}" if number > 1 else "")


def scores_stage(decoding: str, metric: str, number: int = 1) -> str:
    """The name, in ModelResult.stages, of the scores by a metric of the samples under a decoding."""
    return f"scores {decoding} {metric}" + (f" round {number}" if number > 1 else "")


def answers_stage(decoding: str) -> str:
    """The name, in ModelResult.stages, of the known answers under a decoding."""
    return f"answers {decoding}"


def tally(failures: dict[str, int]) -> str:
    """Failures in one line, the most frequent first: "12 timeout, 3 HTTP 500"."""
    return ", ".join(f"{count} {why}" for why, count in sorted(failures.items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """One row of the table.

    role: "target", "retain", "unlearned" or "control". greedy: mean core metric of greedy answers by group of probes,
    of those that have such answers. utility: in [0, 1], the benchmark's model utility where it defines one, else the
    greedy core metric on its utility group; None where an imported log holds neither. metrics: what
    the benchmark's papers report beside leak@k, by name; None where there is no value, with the reason by name in
    missing. tokens: sampled in all, RULE's rounds included. seconds: of work for this model alone, over all workers.
    stages: folder of the model and of its generations and scores, below the store.
    failures: samples without a score by the core metric, by reason, at all decodings. notes: how it was sampled.
    beyond: leak@k above the number of samples, a record for each estimator of the experiment
    (engine/evaluation/beyond_n.py). attacks: leak@k after each attack that was made on the model.
    """

    name: str
    role: str
    method: JsonObject
    greedy: dict[str, float]
    curves: list[Curve]
    utility: float | None
    tokens: int
    seconds: float
    steps: int = 0
    rounds: list[RuleRound] = dataclasses.field(default_factory=list)
    stages: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    beyond: list[BeyondEstimate] = dataclasses.field(default_factory=list)
    attacks: list[AttackResult] = dataclasses.field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the row must know: samples without a score, which count as missing, and the notes."""
        missing = [f"samples without a score: {tally(self.failures)}"] if self.failures else []
        return missing + self.notes

    def curve(self, group: str, metric: str | None = None, decoding: str | None = None) -> Curve:
        """The curve of a group of probes, by the core metric and the first decoding unless others are named. UserError
        where there is none."""
        curve = self.find_curve(group, metric, decoding)
        if curve is None:
            there = ", ".join(f"{each.group} {each.metric} {each.decoding}" for each in self.curves) or "none"
            asked = " ".join(each for each in (group, metric, decoding) if each is not None)
            raise UserError(f"{self.name}: no curve {asked!r}; there are: {there}")
        return curve

    def find_curve(self, group: str, metric: str | None = None, decoding: str | None = None) -> Curve | None:
        """As `curve`, None where there is none."""
        for curve in self.curves:
            if curve.group == group and metric in (None, curve.metric) and decoding in (None, curve.decoding):
                return curve
        return None


class ModelResults(list[ModelResult]):
    """The rows of the table, by position or by the model's name: models[0], models["npo"]."""

    @overload
    def __getitem__(self, which: str | SupportsIndex) -> ModelResult: ...
    @overload
    def __getitem__(self, which: slice) -> list[ModelResult]: ...
    def __getitem__(self, which: str | SupportsIndex | slice) -> ModelResult | list[ModelResult]:
        if not isinstance(which, str):
            return super().__getitem__(which)
        names = [model.name for model in self]
        known(which, names, "models", "print([model.name for model in run.models])")
        return super().__getitem__(names.index(which))

    def __contains__(self, which: object) -> bool:
        return any(which in (model, model.name) for model in self)


@dataclasses.dataclass(frozen=True)
class Results:
    """A whole experiment: its identity, its protocol, a row a model, and what failed (label -> one line).

    clusters: what a prompt shares with others, by its id, where the benchmark knows it. forget: "examples", how many
    the forget set has, and "sha256", their digest; empty where it is not known.
    """

    name: str
    fingerprint: str
    benchmark: JsonObject
    core_metric: str
    leak_group: str
    confidence: float
    models: ModelResults
    failed: dict[str, str]
    seconds: float
    experiment: JsonObject
    clusters: dict[str, str] = dataclasses.field(default_factory=dict)
    forget: JsonObject = dataclasses.field(default_factory=dict)

    def for_these(self) -> Results:
        """The same with all intervals for these very prompts; what an attack changed has none such."""
        models = [
            dataclasses.replace(
                model,
                curves=[curve.for_these() for curve in model.curves],
                attacks=[
                    dataclasses.replace(attack, curve=attack.curve.for_these(), change_low=None, change_high=None)
                    for attack in model.attacks
                ],
            )
            for model in self.models
        ]
        return dataclasses.replace(self, models=ModelResults(models))

    def scope(self, group: str | None = None) -> str:
        """What the intervals of a group of prompts (the leak group) are about, as Curve.scope."""
        curves = (model.find_curve(group or self.leak_group, self.core_metric) for model in self.models)
        return next((curve.scope for curve in curves if curve is not None), "over prompts")

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
            if (curve := model.find_curve(self.leak_group, self.core_metric)) is not None
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

    def table(self) -> pandas.DataFrame:
        """Every number over k: a row for each model, group, metric, decoding and k, with leak and excess over the
        retain model, each with its interval. NaN where a number was not measured."""
        import pandas

        columns = ("k", "leak", "low", "high", "excess", "excess_low", "excess_high", "bound")
        frames = []
        for model in self.models:
            for curve in model.curves:
                known_by_k = {name: values for name in columns if (values := getattr(curve, name)) is not None}
                names = {"model": model.name, "role": model.role, "group": curve.group, "metric": curve.metric}
                costs = {"greedy": model.greedy.get(curve.group), "utility": model.utility}
                frames.append(pandas.DataFrame({**names, "decoding": curve.decoding, **known_by_k, **costs}))
        wanted = ["model", "role", "group", "metric", "decoding", *columns, "greedy", "utility"]
        return (pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()).reindex(columns=wanted)

    def _repr_html_(self) -> str:
        """The table of the headline group, which a notebook shows."""
        import pandas

        rows = []
        for model, curve in self.headline:
            row: dict[str, float | str | None] = {"model": model.name, "greedy": model.greedy.get(curve.group)}
            row |= {f"leak@{k}": leak for k, leak in zip(curve.k, curve.leak, strict=True)}
            if curve.excess is not None and model.role != "retain":
                row[f"excess@{curve.k[-1]}"] = curve.excess[-1]
            rows.append(row | {"utility": model.utility})
        rows += [{"model": f"{name}: failed, {reason}"} for name, reason in self.failed.items()]
        shown = pandas.DataFrame(rows).to_html(index=False, float_format="{:.3f}".format, na_rep="")
        return f"<p>leak@k on {self.leak_group} by {self.core_metric}</p>{shown}"

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
        results = Results(**{**raw, "models": ModelResults(_model(model) for model in raw["models"])})
        _check_names(results)
        return results
    except FileNotFoundError as error:
        raise UserError(f"{run}: no results there; give a run's folder (`leakatk run` prints it)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a results file of leakatk ({type(error).__name__}: {error})") from error


def _model(raw: JsonObject) -> ModelResult:
    """A row of results.json."""
    curves = [_curve(**curve) for curve in raw["curves"]]
    records = {"rounds": RuleRound, "beyond": BeyondEstimate}
    parts = {name: [record(**each) for each in raw.get(name, [])] for name, record in records.items()}
    attacks = [AttackResult(**{**each, "curve": _curve(**each["curve"])}) for each in raw.get("attacks", [])]
    return ModelResult(**{**raw, **parts, "curves": curves, "attacks": attacks})


def _curve(these: JsonObject | None = None, **fields: JsonValue) -> Curve:
    """A curve of results.json."""
    return Curve(**fields, these=Intervals(**these) if these else None)


def _check_names(results: Results) -> None:
    """ValueError where a name that becomes part of a path could lead out of its folder: the file may be another's."""
    names = [results.name, results.leak_group, results.core_metric]
    for model in results.models:
        names += [model.name, *(part for curve in model.curves for part in (curve.group, curve.metric, curve.decoding))]
        names += [attack.attack for attack in model.attacks]
        of_attacks = [each for attack in model.attacks for each in attack.stages.items()]
        for stage, path in (*model.stages.items(), *of_attacks):
            parts = PurePosixPath(path)
            if stage != "model" and (parts.is_absolute() or ".." in parts.parts):  # the model may be anywhere
                raise ValueError(f"the folder of {stage!r} is not in the store: {path!r}")
    for name in names:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"{name[:80]!r} is not a name")
