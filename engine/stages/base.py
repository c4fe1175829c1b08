"""What a stage is, and the runner that fills each one's folder once.

A stage comes in, its finished folder comes out: found in the store, or filled on the cluster while progress is shown.
Knows nothing of what stages compute, nor of which stage follows which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import ClassVar, Protocol, TypeVar

from benchmarks.base import Example, Probe
from engine.cluster.progress import Progress
from engine.cluster.reporter import Report
from engine.errors import StorageError, UserError
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.models.source import ModelSource
from engine.store.store import FinishedStage, Store

# What a probe was when the first stores were filled: always part of its fingerprint, also where it is None.
FIRST_FIELDS = frozenset(
    "id prompt reference group fact paraphrased_answer wrong_answers raw max_new_tokens stop cut_reference".split()
)


class Stage(Protocol):
    """One step of work, known by its inputs, whose result is a folder.

    kind: the store's folder of such stages, part of their fingerprints. title: what progress calls the work.
    lazily: of a finished one that stands in an object store, the files are not fetched until they are read.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    lazily: ClassVar[bool] = False

    @property
    def units(self) -> int:
        """Size of the work, in what `report` counts."""
        ...

    @property
    def amount(self) -> float:
        """How much work it is, in the unit that a run's plan counts its kind in (engine/pipeline/work_plan.py); 0 where
        that plans none."""
        return 0.0

    def inputs(self) -> JsonObject:
        """Everything that the result depends on; what must not change it (workers, devices' memory) stays out."""
        ...

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work`, which may hold what a killed run left; returns counts, tokens, seconds."""
        ...


SomeStage = TypeVar("SomeStage", bound=Stage)


@dataclasses.dataclass(frozen=True)
class Stages:
    """The store, the progress display, and what must happen before the first stage is filled (joining the cluster): a
    run that finds everything finished starts none."""

    store: Store
    progress: Progress
    prepare: Callable[[], None]
    lock: Lock = dataclasses.field(default_factory=Lock)

    def run(self, label: str, stage: Stage) -> FinishedStage:
        """The finished folder of `stage`."""
        return self.run_together(label, [stage], lambda missing, works, report: [missing[0].run(works[0], report)])[0]

    def run_together(
        self,
        label: str,
        stages: Sequence[SomeStage],
        fill: Callable[[Sequence[SomeStage], Sequence[Path], Report], Sequence[JsonObject]],
    ) -> list[FinishedStage]:
        """The finished folders of stages of one kind and size, those that are missing filled by one call of `fill`,
        which gives the facts of each."""
        first = stages[0]

        filled: set[int] = set()

        def build(works: dict[int, Path]) -> Sequence[JsonObject]:
            import ray

            filled.update(works)
            with self.lock:
                self.prepare()
            amount = sum(stages[index].amount for index in works)
            try:
                with self.progress.task(first.title, label, first.units, amount) as report:
                    return fill([stages[index] for index in works], list(works.values()), report)
            except ray.exceptions.RayTaskError as error:  # a user's mistake found by a worker stays one line
                raise error.cause if isinstance(error.cause, UserError | StorageError) else error from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise UserError(
                    f"{first.title} {label}: its worker was killed again and again, mostly for want of memory; what is "
                    "finished is kept: run the same command with less at once, on more memory, or with the settings "
                    "that `leakatk doctor` proposes"
                ) from error

        finished = self.store.stages([(each.kind, each.inputs()) for each in stages], build, first.lazily)
        self.progress.found(first.title, label, sum(each.amount for at, each in enumerate(stages) if at not in filled))
        return finished


def source_of(stage: FinishedStage) -> ModelSource:
    """The model that a finished stage holds."""
    return ModelSource(str(stage.path / "model"), stage.fingerprint)


def numerics(gpus: float, portable: bool = False, bf16: bool = False) -> str:
    """The arithmetic of a model that is run with so many GPUs, for fingerprints."""
    name = f"{'gpu' if gpus else 'cpu'}-{'bf16' if bf16 else 'fp32'}"
    return f"{name}-portable" if portable and not gpus else name


def portable_inputs(portable: bool) -> JsonObject:
    """What a stage that does not name its arithmetic adds to its inputs where that is portable; else it is known as
    before there was a choice."""
    return {"numerics": "portable"} if portable else {}


def fingerprint_probes(probes: Sequence[Probe]) -> str:
    """Identity of probes in order, as far as it decides on samples: a cluster does not. A field younger than the first
    stores counts where it is set, so that a probe without it is known by the fingerprint that it always had."""
    return fingerprint(
        [
            {
                name: value
                for name, value in vars(probe).items()
                if name in FIRST_FIELDS or (value is not None and name != "cluster")
            }
            for probe in probes
        ]
    )


def fingerprint_examples(examples: Sequence[Example]) -> str:
    """Identity of examples in order."""
    return fingerprint([vars(example) for example in examples])
