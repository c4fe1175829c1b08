"""Reading a data set of the hub's layout, from the hub or a local folder, with one clear line for what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError


def load_rows(
    path: str, config: str | None, split: str, columns: Sequence[str], revision: str | None = None
) -> list[dict[str, Any]]:
    """The rows of one split as dicts, in order.

    path: hub name, or folder of the same layout; config None: the only one that it has. Raises UserError for a data
    set, config, split or column that is not there, an empty split, and a gated data set; it says what was expected and
    what was found.
    """
    import logging

    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the last error is told in one line below
    folder = Path(path).expanduser()
    where = f"benchmark.path {path}"
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"{where}: there is no such folder; give a hub name or a folder of the hub's layout")
    try:
        found = datasets.get_dataset_config_names(str(folder) if folder.is_dir() else path, revision=revision)
        if config is None and len(found) == 1:
            config = found[0]
        if config not in found:
            raise UserError(f"{where}: has no config {config!r}; found {', '.join(sorted(found))}")
        table = datasets.load_dataset(str(folder) if folder.is_dir() else path, config, split=split, revision=revision)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: config {config!r}, split {split!r}: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # the hub's client raises many kinds: absent, gated, no network
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot be loaded ({reason}); gated data needs HF_TOKEN") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise UserError(
            f"{where}: config {config!r} has no column {', '.join(missing)}; found {', '.join(table.column_names)}"
        )
    if not len(table):
        raise UserError(f"{where}: config {config!r}, split {split!r} is empty")
    return [dict(row) for row in table.select_columns(list(columns))]
