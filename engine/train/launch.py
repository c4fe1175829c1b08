"""A training as a stage.

A `TrainJob` comes in; a folder with the trained model in Hugging Face's layout comes out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from engine.cluster.progress import TRAINING
from engine.cluster.reporter import Report
from engine.fingerprint import fingerprint
from engine.stages.base import Stage, Stages, fingerprint_examples, fingerprint_probes
from engine.store.manifest import Json
from engine.store.store import FinishedStage
from engine.train.job import TrainJob
from engine.train.loop import TRAIN_VERSION, run_training


@dataclasses.dataclass(frozen=True)
class Training(Stage):
    """The trained model of `job`."""

    job: TrainJob
    kind: ClassVar[str] = "train"
    title: ClassVar[str] = TRAINING.strip()
    lazily: ClassVar[bool] = True

    @property
    def units(self) -> int:
        return self.job.until or self.job.steps

    def inputs(self) -> Json:
        job = self.job
        settings = job.settings.model_dump(exclude={"checkpoint_every", "gpus"})
        if settings["offload"] is None:  # a key younger than many a store: without it fingerprints are as they were
            del settings["offload"]
        inputs = {
            "model": job.model.identity,
            "method": job.method,
            "settings": settings,
            "retain": fingerprint_examples(job.retain),
            "forget": fingerprint_examples(job.forget),
            "alternate": fingerprint_examples(job.alternate),
            "forget_reference": fingerprint(job.forget_reference),
            "alternate_reference": fingerprint(job.alternate_reference),
            "template": job.template,
            "system": job.system,
            "seed": job.seed,
            "watch": fingerprint_probes(job.watch),
            "watch_utility": fingerprint_probes(job.watch_utility),
            "watch_metric": job.watch_metric,
            "watch_options": job.watch_options,
            "watch_tokens": job.watch_tokens,
            "continue_from": Path(job.continue_from).name if job.continue_from else None,
            "keep_state": job.keep_state,
            "version": TRAIN_VERSION,
        }
        options = {"template_options": job.template_options} if job.template_options else {}
        return inputs | options | ({} if job.until is None else {"until": job.until})

    def run(self, work: Path, report: Report) -> Json:
        return run_training(self.job, work, report)


def train(stages: Stages, label: str, job: TrainJob) -> FinishedStage:
    """The trained model of `job`; says where training sequences were cut."""
    stage = stages.run(label, Training(job))
    if count := stage.facts.get("truncated"):
        length = job.settings.max_length
        stages.progress.say(f"train {label}: {count} training sequences are cut to max_length {length} tokens")
    return stage
