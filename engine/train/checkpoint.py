"""Where a training stands between two steps, how that is written down and where it is found again.

A backend and a `TrainState` come in; a folder with both stands where the next worker looks. A training begins in one
place (`resumed`). Knows nothing of losses or of how a step is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.fingerprint import file_digest
from engine.store.replica import collect_folder, present, share_folder
from engine.train.backend import Backend
from engine.train.job import TrainJob

if TYPE_CHECKING:
    from methods.base import Method

PROGRESS = "progress.json"
METHOD_STATE = "method.json"
WEIGHTS = "state.pt"


@dataclasses.dataclass
class TrainState:
    """Where a training stands. step: optimiser steps taken; history: what each of them was; seconds: of work so far;
    method: what the method carries from step to step; saved: the step of the last checkpoint, 0 without one."""

    method: dict[str, float]
    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    saved: int = 0

    def write(self, folder: Path, **more: str) -> None:
        """Write it beside a backend's weights."""
        progress = {"step": self.step, "history": self.history, "seconds": self.seconds, "method_state": self.method}
        (folder / PROGRESS).write_text(json.dumps(progress | more))

    @classmethod
    def read(cls, folder: Path) -> TrainState:
        progress = json.loads((folder / PROGRESS).read_text())
        step, history = progress["step"], progress["history"]
        return cls(progress["method_state"], step, history, progress["seconds"], saved=step)


class Checkpoints(Protocol):
    """Where one training's checkpoints stand."""

    def last(self) -> AbstractContextManager[Path | None]:
        """The folder of the last one that is whole, None without one."""
        ...

    def save(self, backend: Backend, state: TrainState) -> None:
        """Write one, on every worker; a kill in between leaves the one before."""
        ...


def resumed(job: TrainJob, backend: Backend, method: Method, checkpoints: Checkpoints) -> TrainState:
    """Where the training goes on, with the backend's weights and optimizer brought there: at its last checkpoint, where
    it was ended earlier, where the training that it continues ended, or at its beginning."""
    with checkpoints.last() as checkpoint:
        earlier = present(Path(job.resume) / "state") if checkpoint is None and job.resume is not None else checkpoint
        if earlier is not None:
            backend.load(earlier)
            return TrainState.read(earlier)
    if job.continue_from is not None:
        left = present(Path(job.continue_from) / "state")
        backend.load(left)
        return TrainState(json.loads((left / METHOD_STATE).read_text()))
    return TrainState(method.initial_state())


class FolderCheckpoints:
    """Of one worker: the folder `checkpoint` in its work folder, shared with the machines that the work is shared with;
    its weights are known by their digest."""

    def __init__(self, work: Path) -> None:
        self.folder, self.temporary = work / "checkpoint", work / ".checkpoint"

    @contextlib.contextmanager
    def last(self) -> Iterator[Path | None]:
        if not self.folder.exists() and replaced(self.folder).exists():  # killed while one took the other's place
            replaced(self.folder).rename(self.folder)
        collect_folder(self.folder, above=steps_of(self.folder))
        yield self.folder if steps_of(self.folder) else None

    def save(self, backend: Backend, state: TrainState) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        backend.save(self.temporary)
        state.write(self.temporary, sha256=file_digest(self.temporary / WEIGHTS))
        replace_folder(self.temporary, self.folder)
        share_folder(self.folder, order=state.step)


class RayTrainCheckpoints:
    """Of many workers: Ray Train keeps them. Each worker writes its part, the first of them the state too."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @contextlib.contextmanager
    def last(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def save(self, backend: Backend, state: TrainState) -> None:
        import ray.train

        with tempfile.TemporaryDirectory() as temporary:
            backend.save(Path(temporary))
            if self.rank == 0:
                state.write(Path(temporary))
            checkpoint = ray.train.Checkpoint.from_directory(temporary)
            ray.train.report({"step": state.step}, checkpoint=checkpoint)


def steps_of(checkpoint: Path) -> int:
    """Steps that a checkpoint stands at, 0 where it is not there or damaged: then the training begins anew, to the same
    bits."""
    try:
        progress = json.loads((checkpoint / PROGRESS).read_text())
        return int(progress["step"]) if progress["sha256"] == file_digest(checkpoint / WEIGHTS) else 0
    except (OSError, ValueError, KeyError):
        return 0


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a fully written folder in the place of an older one, which a kill in between leaves as `replaced(final)`."""
    shutil.rmtree(replaced(final), ignore_errors=True)
    if final.exists():
        final.rename(replaced(final))
    temporary.rename(final)
    shutil.rmtree(replaced(final), ignore_errors=True)


def replaced(final: Path) -> Path:
    """Where a folder stands for the moment in which another takes its place."""
    return final.with_name(f".{final.name}.replaced")
