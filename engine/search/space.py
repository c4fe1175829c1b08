"""Search spaces: which hyperparameters of a method are searched, for what objective, under which constraint and budget.

A YAML file and an experiment come in; a validated Space comes out, and with a suggested point the experiment's method.
Every mistake is a UserError of one line. Knows nothing of how a search is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark
from engine.config.experiment import Experiment
from engine.config.loader import read_yaml
from engine.config.sections import MethodSection, Positive, Section, TrainSection
from engine.config.shipped import space_path
from engine.errors import UserError, known, validated
from engine.evaluation.benchmark_metrics import metric_names
from engine.search.objective import Objective, check_objective

Range = tuple[float, float]
Integers = tuple[int, int]
Scalar = str | int | float | bool | None
Integer = int  # Parameter has a field of that name
UNNAMED = object()
Share = Annotated[float, Field(gt=0, le=1)]
TRAIN = "train."  # parameters of this prefix are keys of the training, the others the method's own


class Parameter(Section):
    """One searched hyperparameter, by exactly one of the first four keys.

    loguniform, uniform: [low, high]; int: [low, high], both ends included; choice: values; when: by name of an earlier
    parameter, the values for which this one is searched.
    """

    loguniform: Range | None = None
    uniform: Range | None = None
    int: Integers | None = None
    choice: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    when: dict[str, tuple[Scalar, ...]] = {}

    @field_validator("choice", mode="before")
    @classmethod
    def _numbers(cls, given: object) -> object:
        return [_number(value) for value in given] if isinstance(given, list | tuple) else given

    @field_validator("when", mode="before")
    @classmethod
    def _numbers_of_others(cls, given: object) -> object:
        return {name: cls._numbers(values) for name, values in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        given = [name for name in ("loguniform", "uniform", "int", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of loguniform, uniform, int, choice; has {', '.join(given) or 'none'}")
        ends = self.loguniform or self.uniform or self.int
        if ends is not None and not ends[0] < ends[1]:
            raise ValueError(f"the range {list(ends)} is empty: the first number must be below the second")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs numbers above 0, found {self.loguniform[0]:g}")
        return self

    @property
    def corners(self) -> tuple[Scalar, ...]:
        """Values that stand for all: every choice, or both ends of a range."""
        return self.choice or self.loguniform or self.uniform or self.int or ()

    def searched_at(self, point: Mapping[str, object]) -> bool:
        """Whether this one is searched where the parameters above it have these values; left out ones have none."""
        return all(
            other in point and any(_same(point[other], value) for value in values)
            for other, values in self.when.items()
        )

    def can_be(self, value: Scalar) -> bool:
        """Whether a suggestion can be exactly this value: a number of a range with a fraction never is."""
        if self.choice is not None:
            return any(_same(value, choice) for choice in self.choice)
        return self.int is not None and isinstance(value, Integer) and self.int[0] <= value <= self.int[1]


def _number(value: object) -> object:
    """A number that YAML reads as text, for want of a point, as the number it is: 1e-3."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else value


def _same(one: object, other: object) -> bool:
    """Whether two values are one: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


class Rung(Section):
    """A cheap estimate of a trial's leakage. n: samples of a prompt; prompts: share of the prompts that decide."""

    n: Positive
    prompts: Share = 1.0


class Asha(Section):
    """Ending trials while they are trained, by asynchronous successive halving (Li et al., arXiv 1810.05934): after
    some epochs over the forget set leak@n is estimated, and only the best trials that came so far are trained on.

    first: epochs before the first estimate; reduction: the best 1 / reduction go on, for so many times as many epochs;
    n: samples of a prompt in each estimate; prompts: share of the prompts that decide.
    """

    first: float = Field(default=1.0, gt=0)
    reduction: float = Field(default=3.0, gt=1)
    n: Positive = 8
    prompts: Share = 1.0


class Space(Section):
    """A search: the method and its fixed hyperparameters, what is searched, and for what.

    method: whose hyperparameters. fixed: those that are not searched. parameters: those that are, by name; train.KEY is
    a key of the training. objective: what is made small. keep: what a trial must keep to win, as a share of the target
    model's: of `utility`, of a core metric of the experiment (mean over greedy answers to the utility group), or of a
    metric that the benchmark reports beside leak@k. search: tpe (Optuna), pareto (Optuna, leakage against utility),
    random, grid. trials, hours, tokens: so many trials, hours and sampled tokens; whichever is used up first ends the
    making of trials. seeds: trainings of one configuration, whose mean counts. rungs: estimates of a trial before it is
    sampled in full, the first of every trial, the others of those that may still win. asha: estimates while it is
    trained. With pareto, or without rungs, every trial is sampled in full.
    """

    method: str
    fixed: dict[str, object] = {}
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    objective: Objective = Objective()
    keep: Annotated[dict[str, Share], Field(min_length=1)] = {"utility": 0.95}
    search: Literal["tpe", "pareto", "random", "grid"] = "tpe"
    trials: Positive = 20
    hours: float | None = Field(default=None, gt=0)
    tokens: Positive | None = None
    seeds: Positive = 1
    rungs: tuple[Rung, ...] = (Rung(n=4), Rung(n=16), Rung(n=64))
    asha: Asha | None = None

    @model_validator(mode="after")
    def _rungs_grow(self) -> Space:
        sizes = [rung.n for rung in self.rungs]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"rungs: n must grow from rung to rung, found {sizes}")
        return self

    @model_validator(mode="after")
    def _pareto_samples_all(self) -> Space:
        if self.search == "pareto" and self.asha is not None:
            raise ValueError("asha ends trials by leakage alone; search: pareto wants each of them in full")
        return self

    @property
    def trial_count(self) -> int:
        """Trials of a search; of a grid, its points."""
        if self.search != "grid":
            return self.trials
        return math.prod(len(parameter.choice or ()) for parameter in self.parameters.values())

    def corner_points(self) -> list[dict[str, object]]:
        """A point for every corner of every parameter, the others at their first."""
        first: dict[str, object] = {name: parameter.corners[0] for name, parameter in self.parameters.items()}
        return [first | {name: value} for name, parameter in self.parameters.items() for value in parameter.corners]

    def section(self, values: Mapping[str, object]) -> MethodSection:
        """The experiment's method at one point of the space."""
        point = {**self.fixed, **values}
        train = {key.removeprefix(TRAIN): value for key, value in point.items() if key.startswith(TRAIN)}
        own = {key: value for key, value in point.items() if not key.startswith(TRAIN)}
        return MethodSection.model_validate({"name": self.method, "train": train, **own})


def space_for(path: Path | str, experiment: Experiment) -> Space:
    """Read a space file and check it against the experiment and its benchmark. UserError for any mistake."""
    if experiment.requests is not None or experiment.model.endpoint is not None:
        raise UserError(
            f"{experiment.name}: a search takes one request and a model of weights, no requests or endpoint"
        )
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    return load_space(path, experiment.with_protocol(benchmark.protocol), benchmark)


def load_space(path: Path | str, experiment: Experiment, benchmark: Benchmark) -> Space:
    """Read a space, a file or the name of one that ships, and check it against an experiment, with its protocol filled
    in, and its benchmark. UserError for any mistake."""
    where = str(path)
    space: Space = validated(Space, read_yaml(space_path(path), "keys such as method, parameters, objective"), where)
    _check_parameters(space, experiment, where)
    check_objective(space.objective, experiment, benchmark, where)
    n = experiment.sampling.n or 1
    if space.rungs and space.rungs[-1].n >= n:
        raise UserError(f"{where}: rungs: n = {space.rungs[-1].n} is no cheaper than sampling.n = {n}; take it out")
    has_utility_prompts = bool(benchmark.group(benchmark.protocol.utility_group))
    measured = ("utility", *((experiment.metrics or ()) if has_utility_prompts else ()), *metric_names(benchmark))
    for name in space.keep:
        known(name, measured, f"{where}: keep", "leakatk score --help")
    return space


def _check_conditions(space: Space, where: str) -> None:
    """UserError where a parameter's `when` holds at no point of the space, alone or beside the others above it."""
    points: list[dict[str, object]] = [{}]
    for name, parameter in space.parameters.items():
        if any(other not in space.parameters for other in parameter.when):
            return  # said by the check of names
        met = [point for point in points if parameter.searched_at(point)]
        if not met:
            condition = ", ".join(f"{other}: {list(values)}" for other, values in parameter.when.items())
            raise UserError(
                f"{where}: parameters.{name}.when: no point of the space meets {{{condition}}}; give values that the "
                "parameters above it can have"
            )
        asked = [value for each in space.parameters.values() for value in each.when.get(name, ())]
        values = [value for value in asked if parameter.can_be(value)]
        # one more stands for all the values that no condition names
        points = (
            [point for point in points if not parameter.searched_at(point)]
            + [{**point, name: value} for point in met for value in ([*values, UNNAMED] if asked else ())]
            + ([] if asked else met)
        )


def _check_parameters(space: Space, experiment: Experiment, where: str) -> None:
    from methods import METHODS

    known(space.method, METHODS, f"{where}: method", "leakatk methods")
    method = METHODS[space.method]
    if method.procedure == "rounds" or method.starts_from == "pretrained":
        raise UserError(f"{where}: method: {space.method} is not searched; search the method that RULE goes on with")
    _check_conditions(space, where)
    above: list[str] = []
    for name, parameter in space.parameters.items():
        for other in parameter.when:
            if other not in above:
                raise UserError(f"{where}: parameters.{name}.when: {other!r} must be a parameter above it")
        above.append(name)
        if space.search == "grid" and parameter.choice is None:
            raise UserError(f"{where}: parameters.{name}: a grid takes `choice` alone; list the values")
        if space.search == "grid" and parameter.when:
            raise UserError(f"{where}: parameters.{name}.when: a grid has every combination; search: random or tpe")
    names = [name for name, parameter in space.parameters.items() for _ in parameter.corners]
    for name, point in zip(names, space.corner_points(), strict=True):
        section = space.section(point)
        place = f"{where}: parameters.{name} = {point[name]}"
        validated(METHODS[space.method], section.hyperparameters, place)
        validated(TrainSection, experiment.train.model_dump() | section.train, place)
