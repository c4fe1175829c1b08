"""Fanning independent units of work over the cluster with Ray Data, each unit's table committed on its own.

A picklable job with `compute(unit) -> pyarrow.Table` and the number of units come in; a folder with one parquet file a
unit comes out. Units that stand there already are not computed again, so that a kill loses only those in flight, and
results cannot depend on how many workers there were. Knows nothing of what a unit is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine import cluster
from engine.errors import DivergedError, UserError

SECONDS = "leakatk.seconds"  # schema metadata of a unit: how long it took its worker


def unit_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:06d}.parquet"


def fan_out(job: Any, units: int, folder: Path, report: Any, workers: int | None = None, gpus: float = 0.0) -> None:
    """Compute every unit in 0..units-1 that `folder` lacks; at most `workers` at once (None: as many as fit).

    On CPUs a unit is a Ray task, whose process stays warm from stage to stage; with GPUs, actors hold the model, and
    free the device when the stage ends.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    folder.mkdir(exist_ok=True)
    missing = [unit for unit in range(units) if not unit_path(folder, unit).exists()]
    report(units - len(missing), force=True)
    if not missing:
        return
    cpus, devices = cluster.resources()
    room = devices / gpus if gpus else cpus
    if workers is not None:
        cluster.check_fits(workers, gpus, "sampling.workers")
    size = max(1, min(len(missing), workers or int(room)))
    arguments = {"job": job, "folder": str(folder), "report": report}
    cluster.data_context()
    dataset = ray.data.from_items([{"unit": unit} for unit in missing], override_num_blocks=len(missing))
    done: Any
    if gpus:
        done = dataset.map_batches(
            _Worker, fn_constructor_kwargs=arguments, batch_size=1, num_gpus=gpus, compute=ActorPoolStrategy(size=size)
        )
    else:
        done = dataset.map_batches(
            _compute,  # type: ignore[arg-type]
            fn_kwargs=arguments,
            batch_size=1,
            num_cpus=1,
            compute=TaskPoolStrategy(size=size),
        )
    try:
        finished = {int(row["unit"]) for row in done.iter_rows()}
    except ray.exceptions.RayError as error:
        raise _known_cause(error) or error from None
    lost = set(missing) - finished
    if lost:
        raise RuntimeError(
            f"{len(lost)} of {units} units were lost, the first is {min(lost)}; run the same command again"
        )


def _known_cause(error: BaseException) -> BaseException | None:
    """What a unit raised for a reason that the engine knows, under the exceptions that Ray puts around it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | DivergedError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    return cause


class _Worker:
    def __init__(self, job: Any, folder: str, report: Any) -> None:
        self.arguments = {"job": job, "folder": folder, "report": report}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _compute(batch, **self.arguments)


def _compute(batch: dict[str, Any], job: Any, folder: str, report: Any) -> dict[str, Any]:
    """Compute the units of one batch and commit each by a rename."""
    import pyarrow.parquet

    for unit in batch["unit"]:
        clock = time.monotonic()
        table, note = job.compute(int(unit))
        table = table.replace_schema_metadata({SECONDS: f"{time.monotonic() - clock:.6f}"})
        final = unit_path(Path(folder), int(unit))
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        pyarrow.parquet.write_table(table, temporary)
        temporary.replace(final)
        report.of(str(unit))(1, note, force=True)
    return batch


def unit_seconds(folder: Path) -> float:
    """Seconds of work in all units of a folder, over all workers."""
    import pyarrow.parquet

    schemas = (pyarrow.parquet.read_schema(path) for path in folder.glob("*.parquet"))
    return round(sum(float(schema.metadata[SECONDS.encode()]) for schema in schemas), 3)
