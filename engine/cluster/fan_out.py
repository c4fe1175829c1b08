"""Fanning independent units of work over the cluster with Ray Data, each unit's table committed on its own.

A picklable job and the number of units come in; a folder with one parquet file a unit comes out, or several folders.
Units that stand there already are not computed again, so that a kill loses only those in flight, and results cannot
depend on how many workers there were. Knows nothing of what a unit is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.cluster import ray_cluster
from engine.cluster.numerics import worker_environment
from engine.cluster.reporter import Report
from engine.cluster.units import timed, unit_path, whole, write_unit
from engine.errors import DiskFullError, DivergedError, StorageError, UserError, disk_is_full
from engine.store.replica import collect_files
from engine.store.work_dir import Workplace, open_workplace

if TYPE_CHECKING:
    import numpy as np
    from pyarrow import Table
    from ray.data import Dataset

    Batch = dict[str, np.ndarray]  # of Ray Data: one unit, and how it went

KNOWN_ERRORS = {error.__name__: error for error in (UserError, DivergedError, DiskFullError, StorageError)}
MOST_CPUS = 8  # of a worker, where the experiment does not say: more threads gain little
ATTEMPTS = 5  # at a unit whose workers are killed: Ray Data itself would go on for ever


class Job(Protocol):
    """What every unit is computed by, on any node."""

    def compute(self, unit: int) -> tuple[Table | dict[str, Table], str]:
        """The unit's table, or its tables by folder, and a note for the progress display."""
        ...


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker needs to compute any unit."""

    job: Job
    folders: tuple[Path, ...]
    report: Report
    place: Workplace

    def missing(self, units: range) -> list[int]:
        """The units that one of the folders lacks."""
        return [unit for unit in units if not self.stands(unit)]

    def stands(self, unit: int) -> bool:
        """Whether every folder has the unit, undamaged."""
        return all(whole(unit_path(folder, unit)) for folder in self.folders)

    def attempts(self, unit: int) -> Path:
        """The file with one byte for each time that the unit was begun."""
        return self.folders[0] / f".{unit:06d}.attempts"


def fan_out(
    job: Job,
    units: int,
    folder: Path,
    report: Report,
    workers: int | None = None,
    gpus: float = 0.0,
    others: Sequence[Path] = (),
    here: bool = False,
    cpus: int | None = None,
    portable: bool = False,
    actors: bool = False,
) -> None:
    """Compute every unit in 0..units-1 that `folder` or one of the `others` lacks; at most `workers` at once (None: as
    many as fit). here: in this process, for work that takes less time than Ray takes to begin it.

    On CPUs a unit is a Ray task, whose process stays warm from stage to stage; with GPUs, or where `actors` are asked
    for, actors hold the model, and free the device when the stage ends. A unit whose worker is killed is computed
    again, ATTEMPTS times in all. cpus: of a worker (None: what the stage's workers leave, one where it is portable).
    portable: in arithmetic that CPUs share (engine/cluster/numerics.py).
    Raises UserError where the job does, or every worker of a unit is killed.
    """
    work = Work(job, (folder, *others), report, open_workplace(folder.parent))
    for each in work.folders:
        each.mkdir(exist_ok=True)
        collect_files(each)
    missing = work.missing(range(units))
    report(units - len(missing), force=True)
    if not missing:
        return
    for unit in missing:
        work.attempts(unit).unlink(missing_ok=True)
    if here:
        report.begin()
        for unit in missing:
            _commit(unit, work)
        return
    if workers is not None:
        ray_cluster.check_fits(workers, gpus, "sampling.workers")
    finished = set()
    for row in _dataset(
        work, missing, workers, gpus, _cpus(units, workers, cpus, portable), portable, actors
    ).iter_rows():
        if row["error"]:
            raise KNOWN_ERRORS[row["error"]](row["message"])
        finished.add(int(row["unit"]))
    _check_all_here(work, missing, finished, units)


def _cpus(units: int, workers: int | None, cpus: int | None, portable: bool) -> int:
    """CPUs of each worker of a stage of so many units, those that a killed run left finished among them: the number of
    threads decides last bits. As given, but one where arithmetic is portable."""
    if portable:
        return 1
    if cpus is not None:
        return cpus
    at_once = min(units, workers or units, int(ray_cluster.resources()[0]))
    return max(1, min(MOST_CPUS, ray_cluster.cores_of_a_node(), int(ray_cluster.resources()[0]) // max(1, at_once)))


def _dataset(
    work: Work, missing: list[int], workers: int | None, gpus: float, each_cpus: int, portable: bool, actors: bool
) -> Dataset:
    """The missing units as a Ray dataset that computes each when it is read."""
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    cpus, devices = ray_cluster.resources()
    size = max(1, min(len(missing), workers or int(devices / gpus if gpus else cpus / each_cpus)))
    ray_cluster.data_context()
    dataset = ray.data.from_items([{"unit": unit} for unit in missing], override_num_blocks=len(missing))
    name = type(work.job).__name__  # what Ray's dashboard and the process list show, instead of one name for all
    if gpus or actors:
        worker = type(name, (_Worker,), {})
        pool = ActorPoolStrategy(size=size)
        takes = {"num_gpus": gpus} if gpus else {"num_cpus": each_cpus}
        return dataset.map_batches(worker, fn_constructor_args=(work,), batch_size=1, compute=pool, **takes)
    tasks = TaskPoolStrategy(size=size)
    environment = worker_environment(portable)
    return dataset.map_batches(
        _named(name, work), batch_size=1, num_cpus=each_cpus, compute=tasks, runtime_env=environment
    )


def _check_all_here(work: Work, missing: list[int], finished: set[int], units: int) -> None:
    lost = set(missing) - finished
    if lost:
        raise RuntimeError(
            f"{len(lost)} of {units} units were lost, the first is {min(lost)}; run the same command again"
        )
    for folder in work.folders:
        collect_files(folder)
    elsewhere = [unit for unit in missing if not all(unit_path(folder, unit).exists() for folder in work.folders)]
    if elsewhere:
        raise UserError(
            f"{len(elsewhere)} of {units} units were written on nodes whose {work.folders[0]} is not this machine's; "
            "give --store a folder that every node sees, or an object store (docs/storage.md)"
        )


class _Worker:
    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, batch: Batch) -> Batch:
        return _compute(batch, self.work)


def _named(name: str, work: Work) -> Callable[[Batch], Batch]:
    """`_compute` under another name."""

    def compute(batch: Batch) -> Batch:
        return _compute(batch, work)

    compute.__name__ = name
    return compute


def _compute(batch: Batch, work: Work) -> Batch:
    """Compute the unit of a batch and commit it by a rename. Errors that the engine knows come back as data: through
    Ray Data's own exceptions their class would be lost."""
    try:
        work.report.begin()
        work.place.arrive()
        for folder in work.folders:
            folder.mkdir(exist_ok=True)  # there already on every node that sees the driver's
        _commit(int(batch["unit"][0]), work)
    except tuple(KNOWN_ERRORS.values()) as error:
        return _answer(batch, type(error).__name__, str(error))
    except OSError as error:
        if not disk_is_full(error):
            raise
        return _answer(batch, DiskFullError.__name__, str(error))
    return _answer(batch)


def _answer(batch: Batch, error: str = "", message: str = "") -> Batch:
    import numpy as np

    return {"unit": batch["unit"], "error": np.array([error]), "message": np.array([message])}


def _commit(unit: int, work: Work) -> None:
    clock, note = time.monotonic(), ""
    if not work.stands(unit):  # else a worker was killed before it could say so
        _count_attempt(work.attempts(unit))
        tables, note = work.job.compute(unit)
        for folder, table in (tables if isinstance(tables, dict) else {str(work.folders[0]): tables}).items():
            write_unit(timed(table, time.monotonic() - clock), unit_path(Path(folder), unit))
    work.attempts(unit).unlink(missing_ok=True)
    work.report.of(str(unit))(1, note, force=True)


def _count_attempt(path: Path) -> None:
    with path.open("ab") as attempts:
        attempts.write(b".")
        if attempts.tell() > ATTEMPTS:
            raise UserError(
                f"the workers of one unit were killed {ATTEMPTS} times, mostly for want of memory; finished units are "
                "kept: run again with fewer sampling.workers or smaller sampling.max_rows"
            )
