"""Fingerprints of values and digests of files: what is equal has an equal one, whatever the order of its keys.

Of a folder that people hand in, only what decides results counts: no hidden files, and no pointers to files that are
elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from engine.errors import UserError

POINTERS = (b"version https://git-lfs.github.com/", b"/annex/objects/")  # how files of git-lfs, git-annex begin


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. TypeError for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: object) -> str:
    """64 hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder in order, without those whose own name or folder begins with a dot: the hub's client keeps
    times in `.cache`, which are other ones for the same data."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def folder_digests(files: list[Path], folder: Path) -> dict[str, str]:
    """The digest of each file by its path below `folder`."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def stamps(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Path, bytes and time of change of each file: other ones where it was changed while this process ran. The time is
    the file system's own: what is copied over a file may bring its time of writing along."""
    found = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_ctime_ns) for path, stat in found)


def kept_digests(files: list[Path], folder: Path) -> dict[str, str]:
    """`folder_digests`, which take minutes of a large model, kept in this process while the files stay as they are."""
    return dict(_kept_digests(stamps(files), folder))


@functools.lru_cache(maxsize=16)
def _kept_digests(stamped: tuple[tuple[str, int, int], ...], folder: Path) -> dict[str, str]:
    return folder_digests([Path(path) for path, *_ in stamped], folder)


def refuse_pointer(path: Path, where: str) -> None:
    """UserError where `path` holds only a pointer to a large file that was not downloaded (git-lfs, git-annex)."""
    with path.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(POINTERS):
        raise UserError(
            f"{where}: {path} points to a large file that is not here; run `git lfs pull` (or `git annex get`) in its "
            "folder, or download it again"
        )
