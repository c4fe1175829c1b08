"""One experiment from end to end: target and retain model, every method, evaluation, results.

An Experiment comes in; Results come out, and a run folder with everything that a reader wants. What can run side by
side does: threads of the driver wait for stages, Ray places their work.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark, probe_clusters
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.config.experiment import Experiment
from engine.config.sections import MethodSection, TrainSection
from engine.errors import DivergedError, UserError
from engine.evaluation.benchmark_metrics import NO_RETAIN, benchmark_metrics, greedy_metrics
from engine.evaluation.beyond_n import beyond
from engine.evaluation.curves import curves_of_all
from engine.evaluation.evaluate import Evaluation, evaluate
from engine.models.source import ModelSource
from engine.pipeline.identity import contents, experiment_fingerprint, folder_of
from engine.pipeline.interruption import Ending
from engine.pipeline.model_builder import BuiltModel, ModelBuilder
from engine.pipeline.model_checks import check_metrics
from engine.pipeline.preparation import prepared
from engine.pipeline.run_plan import announce, planned
from engine.pipeline.sampling_engine import engine_of
from engine.pipeline.unlearning_requests import judged_on, split_requests
from engine.pipeline.work_plan import evaluation_work, likenesses, planned_work
from engine.reporting.records import AttackResult, Curve
from engine.reporting.results import ModelResult, ModelResults, Results
from engine.stages.base import Stages, fingerprint_examples
from engine.store.store import Store
from engine.tracking.live import Live

THREADS = 16  # they only wait for Ray
ModelFuture = Future[Any]  # of a BuiltModel, or of None where the experiment has no retain model


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A finished model and what was measured of it. role: as ModelResult's; utility: in [0, 1]."""

    name: str
    role: str
    source: ModelSource
    evaluation: Evaluation
    utility: float


@dataclasses.dataclass(frozen=True)
class Attacked:
    """results: of each attack, by name of the model. failed: why one came to nothing, by model and attack."""

    results: dict[str, list[AttackResult]]
    failed: dict[str, str]


class Attacker(Protocol):
    """What attacks the finished models of an experiment (engine/robustness)."""

    def trainings(self, experiment: Experiment, benchmark: Benchmark) -> list[TrainSection]:
        """Settings of all trainings that the attacks need. UserError for an attack that cannot be made; called before
        any work starts."""
        ...

    def reads(self, experiment: Experiment, benchmark: Benchmark) -> dict[str, str]:
        """What the attacks read beside the experiment's data and models, by content."""
        ...

    def attack(
        self, stages: Stages, experiment: Experiment, benchmark: Benchmark, models: Sequence[EvaluatedModel]
    ) -> Attacked:
        """Make every attack on every model."""
        ...


def run(
    experiment: Experiment,
    store: Store,
    quiet: bool = False,
    ending: Ending | None = None,
    attacker: Attacker | None = None,
    whole_plan: bool = False,
) -> Results:
    """Run an experiment, reusing every finished stage of the store. UserError for mistakes found on the way.

    ending: told what there is to end where a signal asks for it. attacker: makes the experiment's attacks. whole_plan:
    say all of the plan, not only what may not fit.
    """
    clock = time.monotonic()
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    if experiment.methods and not benchmark.forget:
        raise UserError(f"benchmark {benchmark.name}: the forget set is empty; choose another split")
    asked, experiment = experiment, prepared(experiment, benchmark)
    attacks = attacker.trainings(experiment, benchmark) if attacker is not None else []
    sections = attacks + [experiment.train_section(method) for method in experiment.methods]
    if experiment.finetune_section is not None:
        sections.append(experiment.finetune_section)

    def join() -> None:
        ray_cluster.connect(any(section.workers > 1 or section.zero_stage > 0 for section in sections))
        for section in sections:
            ray_cluster.check_fits(section.workers, 0, "train.workers")
        if experiment.sampling.workers is not None:
            ray_cluster.check_fits(experiment.sampling.workers, experiment.sampling.gpus or 0, "sampling.workers")

    # Before the first stage is filled; what fails stays, for all threads.
    pending: list[Callable[[], None]] = [lambda: check_metrics(experiment, benchmark), join]

    def prepare() -> None:
        while pending:
            pending[0]()
            pending.pop(0)

    read = attacker.reads(experiment, benchmark) if attacker is not None else {}
    identity = experiment_fingerprint(experiment, contents(experiment, benchmark) | read)
    folder = folder_of(store, experiment.name, identity)
    with Live(experiment.name, identity, folder, store.root) as live, Progress(quiet, live) as progress:
        if ending is not None:
            ending.about(experiment, identity, folder, progress)
        if asked.sampling.engine == "auto":
            engine, why = engine_of(asked, bool(experiment.sampling.gpus))
            progress.say(f"sampling.engine: {engine}, for {why}")
        stages = Stages(store, progress, prepare)
        builder = ModelBuilder(experiment, benchmark, stages)  # finds the base model before any work starts
        pending.append(builder.check)
        pending.append(
            lambda: announce(planned(experiment, benchmark, builder.base, store, attacks), progress.say, whole_plan)
        )
        under_way = _Run(experiment, benchmark, stages, builder)
        models, failed = under_way.models()
        if attacker is not None:
            attacked = attacker.attack(stages, experiment, benchmark, under_way.evaluated(models))
            models = [dataclasses.replace(model, attacks=attacked.results.get(model.name, [])) for model in models]
            failed |= attacked.failed
    data = {f"data of {option}": version for option, version in benchmark.data.items()}
    return Results(
        name=experiment.name,
        fingerprint=identity,
        benchmark={"name": benchmark.name, **experiment.benchmark.options, **data},
        core_metric=benchmark.protocol.core_metric,
        leak_group=benchmark.protocol.leak_group,
        confidence=experiment.leak.confidence,
        models=ModelResults(models),
        failed=failed,
        seconds=round(time.monotonic() - clock, 1),
        experiment=experiment.model_dump(mode="json"),
        clusters=probe_clusters(benchmark),
        forget={"examples": len(benchmark.forget), "sha256": fingerprint_examples(benchmark.forget)},
    )


class _Run:
    """One experiment on its way: its futures, so that every model is evaluated as soon as it is there."""

    def __init__(self, experiment: Experiment, benchmark: Benchmark, stages: Stages, builder: ModelBuilder) -> None:
        self.experiment, self.benchmark, self.stages, self.builder = experiment, benchmark, stages, builder
        self.requests = split_requests(benchmark, experiment.requests) if experiment.requests else None

    def models(self) -> tuple[list[ModelResult], dict[str, str]]:
        """A row for each model in the experiment's order, and one line for each method that failed."""
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            target = pool.submit(self.builder.target)
            retain = pool.submit(self.builder.retain)
            built: list[tuple[str, ModelFuture]] = [(self.experiment.target_name, target), ("retain", retain)]
            for section in self.experiment.methods:
                built += self._submit(pool, section, target, retain)
            model = self.experiment.model
            compares = model.retain is not None or model.finetune is not None
            names = [name for name, _ in built if compares or name != "retain"]
            planned = planned_work(self.experiment, self.benchmark, names)
            self.stages.progress.plan(planned, likenesses(self.experiment))
            evaluated = [(name, future, pool.submit(self._evaluated, future)) for name, future in built]
            self._end_at_a_mistake(pool, [evaluation for _, _, evaluation in evaluated])
            rows: list[tuple[BuiltModel, Evaluation]] = []
            baseline: Evaluation | None = None
            for name, future, evaluation in evaluated:
                try:
                    model, result = future.result(), evaluation.result()
                except DivergedError as error:
                    failed[name] = str(error)
                    self.stages.progress.finish(name, "failed")
                    continue
                if model is not None and result is not None:
                    rows.append((model, result))
                    baseline = result if name == "retain" else baseline
        self.rows = rows
        self.target = next((row for row in rows if row[0].role == "target"), None)
        judged = [judged_on(self.requests, self.benchmark, model.request, result, baseline) for model, result in rows]
        every = curves_of_all(self.experiment, [(own, beside) for _, own, beside in judged])
        return [
            self._row(model, *each, curves) for (model, _), each, curves in zip(rows, judged, every, strict=True)
        ], failed

    def _end_at_a_mistake(self, pool: ThreadPoolExecutor, evaluations: Sequence[Future[Evaluation | None]]) -> None:
        """Wait for all evaluations. The first error that ends the run is said and raised as soon as it is there; what
        has begun is finished before the run ends, so that nothing of it is lost."""
        for evaluation in as_completed(evaluations):
            error = evaluation.exception()
            if error is not None and not isinstance(error, DivergedError):
                self.stages.progress.say(f"{error}; what is under way is finished first")
                pool.shutdown(wait=False, cancel_futures=True)
                raise error

    def evaluated(self, models: Sequence[ModelResult]) -> list[EvaluatedModel]:
        """The models of `models()`, which gave these rows, with their evaluations."""
        return [
            EvaluatedModel(built.name, built.role, built.source, evaluation, model.utility)
            for (built, evaluation), model in zip(self.rows, models, strict=True)
            if model.utility is not None
        ]

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        section: MethodSection,
        target: Future[BuiltModel],
        retain: Future[BuiltModel | None],
    ) -> list[tuple[str, ModelFuture]]:
        """The models that one method makes: one, and its control where it has one; for each request where there are
        several, each from the model that the request before left."""
        from methods import make_method

        method, label = make_method(section.method), self.experiment.label(section)
        parts = self.requests.examples if self.requests is not None else (tuple(self.benchmark.forget),)
        built: list[tuple[str, ModelFuture]] = []
        start = control_start = target
        for request, forget in enumerate(parts):
            suffix = f"-request{request + 1}" if self.requests is not None else ""
            if method.procedure == "training":
                start = pool.submit(_then(self.builder.unlearned, label + suffix, section, forget, request), start)
                built.append((label + suffix, start))
                continue
            work = _then(self.builder.ruled, label + suffix, section, forget, request)
            start = ruled = pool.submit(work, start, retain)
            built.append((label + suffix, start))
            if method.has_control:
                name = f"{label.removeprefix('rule-')}-control{suffix}"
                work = _then(self.builder.control, name, label + suffix, section, forget, request)
                control_start = pool.submit(work, control_start, ruled)
                built.append((name, control_start))
        return built

    def _evaluated(self, built: Future[BuiltModel | None]) -> Evaluation | None:
        model = built.result()
        if model is None:
            return None
        self.stages.progress.only(model.name, evaluation_work(self.experiment, self.benchmark))
        found = evaluate(self.stages, self.experiment, self.benchmark, model.source, model.name)
        self.stages.progress.finish(model.name)
        return found

    def _other(self, built: BuiltModel) -> tuple[ModelSource, Evaluation] | None:
        """The target model and its evaluation, None where `built` is the target model or there is none."""
        if self.target is None or built.role == "target":
            return None
        return self.target[0].source, self.target[1]

    def _row(
        self,
        built: BuiltModel,
        benchmark: Benchmark,
        evaluation: Evaluation,
        baseline: Evaluation | None,
        curves: list[Curve],
    ) -> ModelResult:
        retain = baseline.likelihoods if baseline is not None else None
        beside = {name: evaluation.greedy_means(name) for name in greedy_metrics(benchmark)}
        metrics, missing = benchmark_metrics(benchmark, beside, evaluation.likelihoods, retain)
        if baseline is None:
            missing["excess"] = NO_RETAIN
        return ModelResult(
            name=built.name,
            role=built.role,
            method=built.method,
            greedy=evaluation.greedy_means(benchmark.protocol.core_metric),
            curves=curves,
            utility=evaluation.utility(benchmark, metrics),
            tokens=built.tokens + evaluation.tokens,
            seconds=round(built.seconds + evaluation.seconds, 1),
            steps=built.steps,
            rounds=list(built.rounds),
            failures=evaluation.failures,
            notes=evaluation.notes,
            beyond=beyond(
                self.stages, self.experiment, benchmark, built.name, built.source, evaluation, self._other(built)
            ),
            stages={"model": built.source.path, **evaluation.stages},
            metrics=metrics | {f"accuracy.{group}": each for group, each in evaluation.accuracy.items()},
            missing=missing,
        )


def _then(work: Callable[..., BuiltModel], *first: object) -> Callable[..., BuiltModel]:
    """`work` with these arguments, and then the results of the futures that it is called with."""
    return lambda *futures: work(*first, *(future.result() for future in futures))
