"""Fanning independent units of work over the cluster with Ray Data, each unit's table committed on its own.

A picklable job with `compute(unit) -> (pyarrow.Table, note)` and the number of units come in; a folder with one
parquet file a unit comes out, or several folders, with a dict of tables by folder from `compute`. Units that stand
there already are not computed again, so that a kill loses only those in flight, and results cannot depend on how many
workers there were. Knows nothing of what a unit is.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.cluster import ray_cluster
from engine.errors import DiskFullError, DivergedError, StorageError, UserError, disk_is_full
from engine.store.replica import collect_files, mirror_of, share_file
from engine.store.work_dir import Workplace, open_workplace

KNOWN_ERRORS = {error.__name__: error for error in (UserError, DivergedError, DiskFullError, StorageError)}
SECONDS = "leakatk.seconds"  # schema metadata of a unit: how long it took its worker
ATTEMPTS = 5  # at a unit whose workers are killed: Ray Data itself would go on for ever
COUNTS = "leakatk.counts"  # likewise: what `counted` was given, JSON


def unit_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:06d}.parquet"


def fan_out(
    job: Any,
    units: int,
    folder: Path,
    report: Any,
    workers: int | None = None,
    gpus: float = 0.0,
    others: Sequence[Path] = (),
) -> None:
    """Compute every unit in 0..units-1 that `folder` or one of the `others` lacks; at most `workers` at once (None: as
    many as fit).

    On CPUs a unit is a Ray task, whose process stays warm from stage to stage; with GPUs, actors hold the model, and
    free the device when the stage ends. A unit whose worker is killed is computed again, ATTEMPTS times in all.
    Raises UserError where the job does, or every worker of a unit is killed.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    for each in (folder, *others):
        each.mkdir(exist_ok=True)
        collect_files(each)
    missing = [unit for unit in range(units) if not all(whole(unit_path(each, unit)) for each in (folder, *others))]
    report(units - len(missing), force=True)
    if not missing:
        return
    for unit in missing:
        _attempts(folder, unit).unlink(missing_ok=True)
    cpus, devices = ray_cluster.resources()
    room = devices / gpus if gpus else cpus
    if workers is not None:
        ray_cluster.check_fits(workers, gpus, "sampling.workers")
    size = max(1, min(len(missing), workers or int(room)))
    arguments = {
        "job": job,
        "folders": [str(each) for each in (folder, *others)],
        "report": report,
        "place": open_workplace(folder.parent),
    }
    ray_cluster.data_context()
    dataset = ray.data.from_items([{"unit": unit} for unit in missing], override_num_blocks=len(missing))
    done: Any
    if gpus:
        done = dataset.map_batches(
            type(type(job).__name__, (_Worker,), {}),
            fn_constructor_kwargs=arguments,
            batch_size=1,
            num_gpus=gpus,
            compute=ActorPoolStrategy(size=size),
        )
    else:
        done = dataset.map_batches(
            _named(type(job).__name__),
            fn_kwargs=arguments,
            batch_size=1,
            num_cpus=1,
            compute=TaskPoolStrategy(size=size),
        )
    finished = set()
    for row in done.iter_rows():
        if row["error"]:
            raise KNOWN_ERRORS[row["error"]](row["message"])
        finished.add(int(row["unit"]))
    lost = set(missing) - finished
    if lost:
        raise RuntimeError(
            f"{len(lost)} of {units} units were lost, the first is {min(lost)}; run the same command again"
        )
    for each in (folder, *others):
        collect_files(each)
    paths = {unit: [unit_path(each, unit) for each in (folder, *others)] for unit in missing}
    elsewhere = [unit for unit, found in paths.items() if not all(path.exists() for path in found)]
    if elsewhere:
        raise UserError(
            f"{len(elsewhere)} of {units} units were written on nodes whose {folder} is not this machine's; give "
            "--store a folder that every node sees, or an object store (docs/storage.md)"
        )


def whole(path: Path) -> bool:
    """Whether a unit stands there undamaged: a crash of the machine may have cut one that was not yet sealed."""
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError):  # absent, cut, or of another checksum
        return False
    return True


class _Worker:
    def __init__(self, job: Any, folders: list[str], report: Any, place: Workplace) -> None:
        self.arguments = {"job": job, "folders": folders, "report": report, "place": place}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _compute(batch, **self.arguments)


def _named(name: str) -> Callable[..., dict[str, Any]]:
    """`_compute` under the name that Ray's dashboard and the process list show: of the job, not the same for all."""

    def compute(batch: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        return _compute(batch, **arguments)

    compute.__name__ = name
    return compute


def _compute(batch: dict[str, Any], job: Any, folders: list[str], report: Any, place: Workplace) -> dict[str, Any]:
    """Compute the unit of a batch and commit it by a rename. Errors that the engine knows come back as data: through
    Ray Data's own exceptions their class would be lost."""
    import numpy as np

    try:
        place.arrive()
        for each in folders:
            Path(each).mkdir(exist_ok=True)  # there already on every node that sees the driver's
        return _commit(batch, job, [Path(each) for each in folders], report)
    except StorageError as error:
        told = {"error": np.array([StorageError.__name__]), "message": np.array([str(error)])}
    except OSError as error:
        if not disk_is_full(error):
            raise
        told = {"error": np.array([DiskFullError.__name__]), "message": np.array([str(error)])}
    return {"unit": batch["unit"]} | told


def _commit(batch: dict[str, Any], job: Any, folders: list[Path], report: Any) -> dict[str, Any]:
    import numpy as np

    folder, unit, clock = folders[0], int(batch["unit"][0]), time.monotonic()
    told = {"unit": batch["unit"], "error": np.array([""]), "message": np.array([""])}
    note = ""
    if not all(whole(unit_path(each, unit)) for each in folders):  # else a worker was killed before it could say so
        try:
            _attempt(folder, unit)
            tables, note = job.compute(unit)
        except tuple(KNOWN_ERRORS.values()) as error:
            return told | {"error": np.array([type(error).__name__]), "message": np.array([str(error)])}
        for where, table in (tables if isinstance(tables, dict) else {str(folder): tables}).items():
            _write(timed(table, time.monotonic() - clock), unit_path(Path(where), unit))
    _attempts(folder, unit).unlink(missing_ok=True)
    report.of(str(unit))(1, note, force=True)
    return told


def timed(table: Any, seconds: float) -> Any:
    """The table with the seconds it took its worker, which `unit_seconds` adds up; one that has them keeps them."""
    return table.replace_schema_metadata({SECONDS: f"{seconds:.6f}"} | _text(table.schema.metadata))


def _write(table: Any, path: Path) -> None:
    """The table in a file that is there whole or not at all."""
    import pyarrow.parquet

    if mirror_of(path) is not None:  # of another node
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other nodes have the same process ids
    pyarrow.parquet.write_table(table, temporary, write_page_checksum=True)
    temporary.replace(path)
    share_file(path)


def _text(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (metadata or {}).items()}


def _attempts(folder: Path, unit: int) -> Path:
    """The file with one byte for each time that the unit was begun."""
    return folder / f".{unit:06d}.attempts"


def _attempt(folder: Path, unit: int) -> None:
    with _attempts(folder, unit).open("ab") as attempts:
        attempts.write(b".")
        if attempts.tell() > ATTEMPTS:
            raise UserError(
                f"the workers of one unit were killed {ATTEMPTS} times, mostly for want of memory; finished units are "
                "kept: run again with fewer sampling.workers or smaller sampling.max_rows"
            )


def counted(table: Any, counts: dict[str, int]) -> Any:
    """The table with counts that `unit_counts` adds up over the units, without reading them."""
    return table.replace_schema_metadata({COUNTS: json.dumps(counts)})


def unit_counts(folder: Path) -> dict[str, int]:
    """What the units of a folder were `counted` with, in all."""
    import pyarrow.parquet

    total: Counter[str] = Counter()
    for path in folder.glob("*.parquet"):
        metadata = pyarrow.parquet.read_schema(path).metadata
        total.update(json.loads(metadata.get(COUNTS.encode(), b"{}")))
    return dict(total)


def unit_seconds(folder: Path) -> float:
    """Seconds of work in all units of a folder, over all workers."""
    import pyarrow.parquet

    schemas = (pyarrow.parquet.read_schema(path) for path in folder.glob("*.parquet"))
    return round(sum(float(schema.metadata[SECONDS.encode()]) for schema in schemas), 3)
