"""Reading a data set of the hub's layout, from the hub or a local folder, with one clear line for what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.fingerprint import fingerprint, folder_digests, refuse_pointer, visible_files

COMMITS: dict[tuple[str, str | None], str] = {}  # that the hub has told this process: all of a run's reads are of one


def load_table(
    path: str, config: str | None, split: str, revision: str | None = None, key: str = "benchmark.path"
) -> Any:
    """One split of a data set, iterable by row; arguments and errors as for `load_rows`. key: its name in errors."""
    import logging

    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the last error is told in one line below
    folder, cache = _folder(path), None
    if folder is not None:
        files = visible_files(folder)
        for file in files:
            refuse_pointer(file, f"{key} {path}")
        cache = _cache_of(folder, files)
    commit = revision if folder is not None else _commit(path, revision) or revision
    where, place = f"{key} {path}", str(folder or path)
    try:
        found = datasets.get_dataset_config_names(place, revision=commit)
        if config is None and len(found) == 1:
            config = found[0]
        if config not in found:
            raise UserError(f"{where}: has no config {config!r}; found {', '.join(sorted(found))}")
        return datasets.load_dataset(place, config, split=split, revision=commit, cache_dir=cache)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: config {config!r}, split {split!r}: {_one_line(error)}") from error
    except Exception as error:  # the hub's client raises many kinds: absent, gated, no network
        raise UserError(f"{where}: cannot be loaded ({_one_line(error)}); gated data needs HF_TOKEN") from error


def load_rows(
    path: str, config: str | None, split: str, columns: Sequence[str], revision: str | None = None
) -> list[dict[str, Any]]:
    """The rows of one split as dicts, in order.

    path: hub name, or folder of the same layout; config None: the only one that it has; revision: commit, branch or tag
    on the hub (None: its newest), resolved once a process, so that all configs come from one commit. Raises UserError
    for a data set, config, split or column that is not there, an empty split or cell, and a gated data set; it says
    what was expected and what was found.
    """
    table = load_table(path, config, split, revision)
    where = f"benchmark.path {path}: config {config!r}"
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise UserError(f"{where} has no column {', '.join(missing)}; found {', '.join(table.column_names)}")
    if not len(table):
        raise UserError(f"{where}, split {split!r} is empty")
    rows = [dict(row) for row in table.select_columns(list(columns))]
    for index, row in enumerate(rows):
        for column in columns:
            if row[column] is None or row[column] in ("", []):
                raise UserError(f"{where}, split {split!r}: row {index} has nothing in column {column}")
    return rows


def data_version(path: str, revision: str | None = None) -> str:
    """What a data set holds, by name: the commit on the hub that `load_rows` reads, or a digest of the folder's files.

    Where the hub cannot be reached and a cached copy is read, "cached copy".
    """
    folder = _folder(path)
    if folder is None:
        commit = _commit(path, revision)
        return f"commit {commit}" if commit else "cached copy"
    return f"sha256 {fingerprint(folder_digests(visible_files(folder), folder))[:40]}"


def _cache_of(folder: Path, files: list[Path]) -> str:
    """Where a folder of these files is cached. `datasets` finds a folder that lists its configs again by its name and
    that list alone, whatever else has that name and however its files were changed."""
    import datasets

    return str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / fingerprint(folder_digests(files, folder))[:16])


def _folder(path: str) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")):
        raise UserError(
            f"benchmark.path {path}: there is no such folder; give a hub name or a folder of the hub's layout"
        )
    return None


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set stands at; None where the hub cannot be reached, this time."""
    if (name, revision) not in COMMITS:
        found = _asked_commit(name, revision)
        if found is None:
            return None
        COMMITS[name, revision] = found
    return COMMITS[name, revision]


def _asked_commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=20).sha)
    except HFValidationError as error:
        raise UserError(f"benchmark.path {name!r} is neither a folder nor a hub name such as org/data") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "?")
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"benchmark.path {name}: the hub does not give this data set{at} (HTTP {code}); is the name right? gated "
            "data needs HF_TOKEN"
        ) from error
    except Exception:  # no network, whatever the http library raises: a cached copy may do
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
