"""A unit of work on disk: one parquet file, whole or absent, with its seconds and counts beside its rows.

Knows nothing of what a unit is or of who computes it.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from engine.store.replica import mirror_of, share_file

if TYPE_CHECKING:
    from pyarrow import Table

SECONDS = "leakatk.seconds"  # schema metadata of a unit: how long it took its worker
COUNTS = "leakatk.counts"  # likewise: what `counted` was given, JSON


def unit_path(folder: Path, unit: int) -> Path:
    """The file of a unit's table."""
    return folder / f"{unit:06d}.parquet"


def read_unit(path: Path | BytesIO, columns: list[str] | None = None, checked: bool = False) -> Table:
    """The table of a unit, or some of its columns; checked: OSError where it is damaged.

    Units are small files: pyarrow's read_table, which goes through data sets and threads, takes longer.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=checked) as file:
        return file.read(columns, use_threads=False)


def each_unit(stage: Path, columns: list[str] | None = None) -> Iterator[Table]:
    """The tables of a finished stage's units, in their order, one at a time."""
    return (read_unit(path, columns) for path in sorted((stage / "units").glob("*.parquet")))


def read_units(stage: Path, columns: list[str] | None = None) -> Table:
    """All units of a finished stage as one table, in the order of prompts and samples."""
    import pyarrow

    tables = each_unit(stage, columns)
    return pyarrow.concat_tables(tables, promote_options="default")  # a unit has `failure` where a sample has one


def whole(path: Path) -> bool:
    """Whether a unit stands there undamaged: a crash of the machine may have cut one that was not yet sealed."""
    try:
        read_unit(path, checked=True)
    except (OSError, ValueError):  # absent, cut, or of another checksum
        return False
    return True


def write_unit(table: Table, path: Path) -> None:
    """The table in a file that is there whole or not at all, shared with the other nodes."""
    import pyarrow.parquet

    if mirror_of(path) is not None:  # of another node
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other nodes have the same process ids
    pyarrow.parquet.write_table(table, temporary, write_page_checksum=True)
    temporary.replace(path)
    share_file(path)


def timed(table: Table, seconds: float) -> Table:
    """The table with the seconds it took its worker, which `unit_seconds` adds up; one that has them keeps them."""
    kept = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    return table.replace_schema_metadata({SECONDS: f"{seconds:.6f}"} | kept)


def counted(table: Table, counts: dict[str, int]) -> Table:
    """The table with counts that `unit_counts` adds up over the units, without reading them."""
    return table.replace_schema_metadata({COUNTS: json.dumps(counts)})


def unit_counts(folder: Path) -> dict[str, int]:
    """What the units of a folder were `counted` with, in all."""
    total: Counter[str] = Counter()
    for metadata in _metadata(folder):
        total.update(json.loads(metadata.get(COUNTS.encode(), b"{}")))
    return dict(total)


def unit_seconds(folder: Path) -> float:
    """Seconds of work in all units of a folder, over all workers."""
    return round(sum(float(metadata[SECONDS.encode()]) for metadata in _metadata(folder)), 3)


def _metadata(folder: Path) -> list[dict[bytes, bytes]]:
    import pyarrow.parquet

    return [pyarrow.parquet.read_schema(path).metadata for path in folder.glob("*.parquet")]
