"""One experiment from end to end: target and retain model, every method, evaluation, results.

An Experiment comes in; Results come out, and a run folder with everything that a reader wants. What can run side by
side does: threads of the driver wait for stages, Ray places their work.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS
from benchmarks.base import Benchmark, Decoding, Example
from engine import cluster
from engine.alternates import alternate_probes, paired, refusals
from engine.batches import TrainJob
from engine.errors import DivergedError, UserError
from engine.evaluate import Evaluation, curves, evaluate, job_for
from engine.experiment import Experiment, MethodSection, TrainSection, parse_experiment
from engine.models import ModelSource, model_source
from engine.progress import Progress
from engine.reference import ReferenceJob
from engine.results import ModelResult, Results
from engine.rule import Rule, RuleRun
from engine.sample import read_units
from engine.stages import Stages, source_of
from engine.store import Store, fingerprint

THREADS = 16  # they only wait for Ray


@dataclasses.dataclass(frozen=True)
class Made:
    """A model that the experiment made or was given, and what it took."""

    name: str
    role: str
    source: ModelSource
    method: dict[str, Any]
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rounds: tuple[dict[str, Any], ...] = ()


def run(experiment: Experiment, store: Store, quiet: bool = False) -> Results:
    """Run an experiment, reusing every finished stage of the store. UserError for mistakes found on the way."""
    clock = time.monotonic()
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    if not benchmark.forget:
        raise UserError(f"benchmark {benchmark.name}: the forget set is empty; choose another split")
    experiment = parse_experiment(experiment.with_protocol(benchmark.protocol).model_dump(), experiment.name)
    sections = [experiment.train_section(method) for method in experiment.methods]
    if experiment.finetune_section is not None:
        sections.append(experiment.finetune_section)
    experiment = _with_devices(experiment)

    def prepare() -> None:
        cluster.connect(any(section.workers > 1 or section.zero_stage > 0 for section in sections))
        for section in sections:
            cluster.check_fits(section.workers, 0, "train.workers")
        if experiment.sampling.workers is not None:
            cluster.check_fits(experiment.sampling.workers, experiment.sampling.gpus or 0, "sampling.workers")

    with Progress(quiet) as progress:
        stages = Stages(store, progress, experiment.sampling.workers, prepare)
        models, failed = _Run(experiment, benchmark, stages).models()
    return Results(
        name=experiment.name,
        fingerprint=experiment_fingerprint(experiment),
        benchmark={"name": benchmark.name, **experiment.benchmark.options},
        core_metric=benchmark.protocol.core_metric,
        leak_group=benchmark.protocol.leak_group,
        confidence=experiment.leak.confidence,
        models=models,
        failed=failed,
        seconds=round(time.monotonic() - clock, 1),
        experiment=experiment.model_dump(mode="json"),
    )


def experiment_fingerprint(experiment: Experiment) -> str:
    """Identity of what is measured: the experiment without its name and without what cannot change results."""
    settings = experiment.model_dump(mode="json", exclude={"name"})
    settings["sampling"] = {k: v for k, v in settings["sampling"].items() if k not in ("workers", "max_rows")}
    return fingerprint(settings)


def run_folder(store: Store, results: Results) -> Path:
    """Where a run's results, picture and report stand: runs/<name>-<fingerprint> below the store."""
    folder = store.root / "runs" / f"{results.name}-{results.fingerprint[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _with_devices(experiment: Experiment) -> Experiment:
    if experiment.sampling.gpus is not None:
        return experiment
    gpus = 1.0 if cluster.has_gpus() else 0.0
    return experiment.model_copy(update={"sampling": experiment.sampling.model_copy(update={"gpus": gpus})})


class _Run:
    """One experiment on its way: its futures, so that every model is evaluated as soon as it is there."""

    def __init__(self, experiment: Experiment, benchmark: Benchmark, stages: Stages) -> None:
        self.experiment, self.benchmark, self.stages = experiment, benchmark, stages
        self.base: ModelSource | None = None

    def models(self) -> tuple[list[ModelResult], dict[str, str]]:
        """A row for each model in the experiment's order, and one line for each method that failed."""
        from methods import METHODS

        self._find_base()
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            target = pool.submit(self._target)
            retain = pool.submit(self._retain)
            made: list[tuple[str, Future[Any]]] = [("target", target), ("retain", retain)]
            for section in self.experiment.methods:
                label = self.experiment.label(section)
                method = METHODS[section.name](**section.hyperparameters)
                if section.name == "rule":
                    made += self._submit_rule(pool, label, section, method, target, retain)
                else:
                    made.append((label, pool.submit(self._unlearned, label, section, method, target)))
            evaluated = [(name, future, pool.submit(self._evaluated, future)) for name, future in made]
            rows: list[tuple[Made, Evaluation]] = []
            yardstick: Evaluation | None = None
            for name, future, evaluation in evaluated:
                try:
                    model, found = future.result(), evaluation.result()
                except DivergedError as error:
                    failed[name] = str(error)
                    continue
                if model is not None and found is not None:
                    rows.append((model, found))
                    yardstick = found if name == "retain" else yardstick
        return [self._row(model, found, yardstick) for model, found in rows], failed

    def _submit_rule(
        self,
        pool: ThreadPoolExecutor,
        label: str,
        section: MethodSection,
        method: Any,
        target: Future[Made],
        retain: Future[Made | None],
    ) -> list[tuple[str, Future[Any]]]:
        def prepared() -> Rule:
            job = self._job(label, section, method.base_method(), method.base, target)
            yardstick = retain.result()
            source = yardstick.source if yardstick is not None else None
            return Rule(self.stages, self.experiment, self.benchmark, label, job, method, source)

        described = {"name": "rule", **method.model_dump()}
        ruled = pool.submit(lambda: prepared().run())
        made = [(label, pool.submit(lambda: _made_by_rule(label, "unlearned", described, ruled.result())))]
        if method.control:
            name = f"{label.removeprefix('rule-')}-control"
            control = pool.submit(lambda: prepared().control(ruled.result().steps))
            made.append((name, pool.submit(lambda: _made_by_rule(name, "control", method.base, control.result()))))
        return made

    def _find_base(self) -> None:
        """The model that target and retain model are fine-tuned from, resolved before any work starts."""
        model = self.experiment.model
        if model.path is not None:
            self.base = model_source(model.path, model.revision, model.trust_remote_code)
            return
        options = self.experiment.benchmark.options
        self.base = self.stages.base(self.benchmark, options, self.experiment.seed)
        if self.base is None:
            raise UserError(f"model.path: benchmark {self.benchmark.name} brings no model; give a folder or hub name")

    def _target(self) -> Made:
        if self.experiment.model.finetune is None:
            return Made("target", "target", self._base_source(), {})
        return self._finetuned("target", self.benchmark.finetune_forget + self.benchmark.finetune_retain)

    def _retain(self) -> Made | None:
        model = self.experiment.model
        if model.retain is not None:
            source = model_source(model.retain, model.retain_revision, model.trust_remote_code, "model.retain")
            return Made("retain", "retain", source, {})
        if model.finetune is None:
            return None
        return self._finetuned("retain", self.benchmark.finetune_retain)

    def _finetuned(self, label: str, examples: list[Example]) -> Made:
        section = self.experiment.finetune_section
        assert section is not None
        job = self._train_job(self._base_source(), {"name": "retrain"}, section, retain=tuple(examples))
        return self._trained(label, label, job)

    def _unlearned(self, label: str, section: MethodSection, method: Any, target: Future[Made]) -> Made:
        hyperparameters = {"name": section.name, **section.hyperparameters}
        job = self._job(label, section, method, hyperparameters, target)
        return self._trained(label, "unlearned", job)

    def _job(
        self, label: str, section: MethodSection, method: Any, hyperparameters: dict[str, Any], target: Future[Made]
    ) -> TrainJob:
        """The training of one method from the target model, with the reference log-probabilities that it needs."""
        settings = self.experiment.train_section(section)
        source = target.result().source
        forget, alternate = self._pairs(label, method, source)
        reference: dict[str, tuple[float, ...]] = {}
        if "reference_logprob" in method.needs:
            template, system = self.experiment.model.template, self.experiment.model.system
            for name, examples in (("forget", forget), ("alternate", alternate)):
                wanted = ReferenceJob(source, examples, template, system, settings.max_length)
                if examples:
                    reference[f"{name}_reference"] = self.stages.reference(f"{label} {name}", wanted)
        retain = tuple(self.benchmark.retain) if "retain" in method.needs else ()
        watched = {(each.question, each.answer) for each in forget} if settings.watches else set()
        utility = self.benchmark.group(self.benchmark.protocol.utility_group) if settings.eval_samples else []
        return self._train_job(
            source,
            hyperparameters,
            settings,
            forget=forget,
            alternate=alternate,
            retain=retain,
            **reference,
            watch=tuple(probe for probe in self.benchmark.probes if (probe.prompt, probe.reference) in watched),
            watch_utility=tuple(utility),
        )

    def _pairs(self, label: str, method: Any, source: ModelSource) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """The forget set, and row by row the alternate answers where the method needs them."""
        forget = tuple(self.benchmark.forget)
        if "alternate" not in method.needs:
            return forget, ()
        if method.alternates == "idk":
            return forget, refusals(forget)
        probes = alternate_probes(forget, method.prompt)
        job = job_for(self.experiment, source, probes, Decoding(), method.samples, self.experiment.seed)
        sampled = self.stages.sample(f"{label} alternates", job)
        texts = read_units(sampled.path, ["response"])["response"].to_pylist()
        return paired(forget, [texts[at : at + method.samples] for at in range(0, len(texts), method.samples)])

    def _train_job(self, source: ModelSource, method: dict[str, Any], settings: TrainSection, **sets: Any) -> TrainJob:
        return TrainJob(
            model=source,
            method=method,
            settings=settings,
            template=self.experiment.model.template,
            system=self.experiment.model.system,
            seed=self.experiment.seed,
            watch_metric=self.benchmark.protocol.core_metric,
            watch_options=self.experiment.metric_options.get(self.benchmark.protocol.core_metric, {}),
            watch_tokens=self.experiment.sampling.max_new_tokens or 1,
            **sets,
        )

    def _trained(self, label: str, role: str, job: TrainJob) -> Made:
        stage = self.stages.train(label, job)
        facts = stage.facts
        return Made(label, role, source_of(stage), job.method, facts["steps"], seconds=facts["seconds"])

    def _base_source(self) -> ModelSource:
        assert self.base is not None
        return self.base

    def _evaluated(self, made: Future[Made | None]) -> Evaluation | None:
        model = made.result()
        if model is None:
            return None
        return evaluate(self.stages, self.experiment, self.benchmark, model.source, model.name)

    def _row(self, made: Made, evaluation: Evaluation, yardstick: Evaluation | None) -> ModelResult:
        protocol = self.benchmark.protocol
        greedy = evaluation.greedy_means(protocol.core_metric)
        return ModelResult(
            name=made.name,
            role=made.role,
            method=made.method,
            greedy=greedy,
            curves=curves(self.experiment, evaluation, yardstick),
            utility=greedy[protocol.utility_group],
            tokens=made.tokens + evaluation.tokens,
            seconds=round(made.seconds + evaluation.seconds, 1),
            steps=made.steps,
            rounds=list(made.rounds),
            stages={"model": made.source.path, **evaluation.stages},
        )


def _made_by_rule(name: str, role: str, method: dict[str, Any], run: RuleRun) -> Made:
    return Made(name, role, source_of(run.stage), method, run.steps, run.tokens, run.seconds, tuple(run.rounds))
