"""The engine's stages bound to one store: train, reference, likelihoods, sample, score, each a fingerprinted folder.

Jobs come in, finished stages come out; what must not change results (workers, progress) stays out of fingerprints.
Knows nothing of experiments or of which stage follows which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.progress import TRAINING, Progress
from engine.decode.law import tie_inputs
from engine.errors import StorageError, UserError
from engine.fingerprint import fingerprint
from engine.models.source import ModelSource
from engine.stages.known_answers import ANSWERS_VERSION, AnswersJob, run_answers
from engine.stages.likelihood import LIKELIHOOD_VERSION, LikelihoodJob, run_likelihoods
from engine.stages.reference import ReferenceJob, read_reference, run_reference
from engine.stages.sample import SAMPLE_VERSION, SampleJob, run_grid
from engine.stages.sample_adaptive import SEQUENTIAL_VERSION, SequentialJob, run_sequential
from engine.stages.sample_endpoint import EndpointJob, run_asking
from engine.stages.sample_logprobs import RELOG_VERSION, RelogJob, run_relog
from engine.stages.score import SCORE_VERSION, ScoreJob, run_scoring
from engine.store.store import Stage, Store
from engine.store.work_dir import at_work, open_workplace
from engine.train.job import TrainJob
from engine.train.loop import TRAIN_VERSION, run_training


@dataclasses.dataclass(frozen=True)
class Stages:
    """The store, the progress display, how many sampling workers may run at once, and what must happen before the first
    stage is built (joining the cluster): a run that finds everything finished starts none."""

    store: Store
    progress: Progress
    sampling_workers: int | None
    prepare: Callable[[], None]
    lock: Lock = dataclasses.field(default_factory=Lock)

    def stage(
        self, kind: str, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]], lazily: bool = False
    ) -> Stage:
        """The store's stage, the cluster joined before it is built."""

        def prepared(work: Path) -> dict[str, Any]:
            import ray

            with self.lock:
                self.prepare()
            try:
                return build(work)
            except ray.exceptions.RayTaskError as error:  # a user's mistake found by a worker stays one line
                raise error.cause if isinstance(error.cause, UserError | StorageError) else error from None

        return self.store.stage(kind, inputs, prepared, lazily)

    def base(self, benchmark: Benchmark, options: dict[str, Any], seed: int) -> ModelSource | None:
        """The benchmark's own untrained model, or None where it brings none."""

        if type(benchmark).base_model is Benchmark.base_model:
            return None

        def build(work: Path) -> dict[str, Any]:
            import ray

            task = ray.remote(at_work).options(num_cpus=1, scheduling_strategy=ray_cluster.ANYWHERE)
            place = open_workplace(work)
            ray.get(task.remote(place, _write_base_model, benchmark, work / "model", seed))
            place.receive()
            return {}

        options = benchmark.base_inputs(options)
        inputs = {"benchmark": benchmark.name, "options": options, "seed": seed, "version": TRAIN_VERSION}
        return source_of(self.stage("base", inputs, build, lazily=True))

    def train(self, label: str, job: TrainJob) -> Stage:
        """The trained model of `job`."""
        settings = job.settings.model_dump(exclude={"checkpoint_every", "gpus"})
        if settings["offload"] is None:  # a key younger than many a store: without it fingerprints are as they were
            del settings["offload"]
        inputs = dataclasses.asdict(job) | {
            "model": job.model.identity,
            "settings": settings,
            "continue_from": Path(job.continue_from).name if job.continue_from else None,
            "version": TRAIN_VERSION,
        }
        for name in ("forget", "retain", "alternate", "watch", "watch_utility"):
            inputs[name] = fingerprint([dataclasses.asdict(each) for each in getattr(job, name)])
        for name in ("forget_reference", "alternate_reference"):
            inputs[name] = fingerprint(getattr(job, name))
        del inputs["resume"]
        if job.until is None:
            del inputs["until"]

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"{TRAINING}{label}", job.until or job.steps) as report:
                return run_training(job, work, report)

        stage = self.stage("train", inputs, build, lazily=True)
        if stage.facts.get("truncated"):
            count, length = stage.facts["truncated"], job.settings.max_length
            self.progress.say(f"train {label}: {count} training sequences are cut to max_length {length} tokens")
        return stage

    def reference(self, label: str, job: ReferenceJob) -> tuple[float, ...]:
        """Log-probabilities of the job's examples under its model."""
        inputs = dataclasses.asdict(job) | {
            "model": job.model.identity,
            "examples": fingerprint([dataclasses.asdict(each) for each in job.examples]),
            "version": TRAIN_VERSION,
        }

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"reference log-probabilities {label}", 1):
                return run_reference(job, work)

        return read_reference(self.stage("reference", inputs, build).path)

    def likelihoods(self, label: str, job: LikelihoodJob) -> Stage:
        """What the job's model says of every answer token of its examples."""
        inputs = dataclasses.asdict(job) | {
            "model": job.model.identity,
            "examples": fingerprint([dataclasses.asdict(each) for each in job.examples]),
            "gradients": fingerprint(sorted(job.gradients)),
            "numerics": "gpu-bf16" if job.gpus else "cpu-fp32",
            "version": LIKELIHOOD_VERSION,
        }
        del inputs["gpus"]

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"likelihoods {label}", job.units) as report:
                return run_likelihoods(job, work, report, self.sampling_workers)

        return self.stage("likelihood", inputs, build)

    def sample(self, label: str, job: SampleJob) -> Stage:
        """The generations of `job`."""
        return self.sample_grid(label, [job])[0]

    def sample_grid(self, label: str, jobs: Sequence[SampleJob]) -> list[Stage]:
        """The generations of each of the jobs, which differ in decoding alone: a stage each, those that are not there
        yet filled in one pass over the prompts."""
        order = sorted(range(len(jobs)), key=lambda index: fingerprint(_sample_inputs(jobs[index])))
        stages: dict[int, Stage] = {}
        works: dict[int, Path] = {}
        facts: dict[int, dict[str, Any]] = {}

        def fill() -> None:
            with self.progress.task(f"sample {label}", jobs[0].units) as report:
                missing = [jobs[index] for index in works]
                found = run_grid(missing, list(works.values()), report, self.sampling_workers)
                facts.update(zip(works, found, strict=True))

        def open_from(place: int) -> None:
            """Open the stages from `place` in `order` on, one within the other; the innermost fills all that are new.
            Two runs ask for them in the same order, so that neither waits for the other's."""
            if place == len(order):
                return fill() if works else None
            index = order[place]

            def build(work: Path) -> dict[str, Any]:
                works[index] = work
                open_from(place + 1)
                return facts[index]

            stages[index] = self.stage("sample", _sample_inputs(jobs[index]), build)
            if index not in works:
                open_from(place + 1)
            return None

        open_from(0)
        return [stages[index] for index in range(len(jobs))]

    def answers(self, label: str, job: AnswersJob) -> Stage:
        """The known answers of `job`."""
        inputs = self._prompting(job.sampling) | {
            "metric": job.metric,
            "options": job.options,
            "beams": job.beams,
            "version": ANSWERS_VERSION,
        }
        inputs |= tie_inputs([job.sampling.decoding], bf16=job.sampling.gpus > 0)

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"known answers {label}", job.units) as report:
                return run_answers(job, work, report, self.sampling_workers)

        return self.stage("answers", inputs, build)

    def relog(self, label: str, job: RelogJob) -> Stage:
        """The log-probabilities of `job`."""
        inputs = self._prompting(job.sampling) | {
            "n": job.sampling.n,
            "generations": Path(job.generations).name,
            "decodings": [each.model_dump() for each in job.decodings],
            "version": RELOG_VERSION,
        }
        inputs |= tie_inputs(job.decodings, bf16=job.sampling.gpus > 0)

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"log-probabilities {label}", job.sampling.units) as report:
                return run_relog(job, work, report, self.sampling_workers)

        return self.stage("relog", inputs, build)

    def sequential(self, label: str, job: SequentialJob) -> Stage:
        """More samples of each prompt until its rule is met."""
        inputs = self._prompting(job.sampling) | {
            "seed": job.sampling.seed,
            "asked": fingerprint([dataclasses.asdict(each) for each in job.asked]),
            "metric": job.metric,
            "options": job.options,
            "version": SEQUENTIAL_VERSION,
        }

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"sample on {label}", job.units) as report:
                return run_sequential(job, work, report, self.sampling_workers)

        return self.stage("sequential", inputs, build)

    def _prompting(self, job: SampleJob) -> dict[str, Any]:
        """What decides how a sampling's model is prompted and cut, without how many samples of what seed."""
        return {
            "model": job.model.identity,
            "probes": fingerprint([dataclasses.asdict(each) for each in job.probes]),
            "decoding": job.decoding.model_dump(),
            "max_new_tokens": job.max_new_tokens,
            "template": job.template,
            "system": job.system,
            "retokenise": job.retokenise,
            "numerics": "gpu-bf16" if job.gpus else "cpu-fp32",
        }

    def ask(self, label: str, job: EndpointJob) -> Stage:
        """The generations of `job`, from a model behind a server."""

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"sample {label}", job.units) as report:
                return run_asking(job, work, report)

        return self.stage("sample", job.inputs, build)

    def score(self, label: str, generations: Stage, metric: str, options: dict[str, Any], gpus: float = 0.0) -> Stage:
        """The scores of a finished sampling under one metric with its options."""
        units = sum(name.startswith("units/") for name in generations.manifest["files"])
        inputs = {
            "generations": generations.fingerprint,
            "metric": metric,
            "options": options,
            "version": SCORE_VERSION,
        }

        def build(work: Path) -> dict[str, Any]:
            with self.progress.task(f"score {label} by {metric}", units) as report:
                return run_scoring(ScoreJob(str(generations.path), units, metric, options, gpus), work, report)

        return self.stage("score", inputs, build)


def _sample_inputs(job: SampleJob) -> dict[str, Any]:
    """What the samples depend on, for the stage's fingerprint."""
    inputs = dataclasses.asdict(job) | {
        "model": job.model.identity,
        "probes": fingerprint([dataclasses.asdict(each) for each in job.probes]),
        "decoding": job.decoding.model_dump(),
        "numerics": "gpu-bf16" if job.gpus else "cpu-fp32",
        "version": SAMPLE_VERSION,
    }
    del inputs["gpus"], inputs["max_rows"]
    return inputs | ({"stop": "ends the sample"} if any(probe.stop for probe in job.probes) else {})


def _write_base_model(benchmark: Benchmark, folder: Path, seed: int) -> None:
    benchmark.base_model(folder, seed)


def source_of(stage: Stage) -> ModelSource:
    """The model that a finished stage holds."""
    return ModelSource(str(stage.path / "model"), stage.fingerprint)
