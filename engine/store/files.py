"""Files that several processes and hosts share: replaced in one step, flushed to disk, locked, known by their digest.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from engine.fingerprint import file_digest

MOUNTS = Path("/proc/self/mounts")


class FileFacts(TypedDict):
    """Size and digest of a file, as manifests keep them."""

    bytes: int
    sha256: str


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file. OSError where it cannot be read."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def matches(path: Path, facts: FileFacts) -> bool:
    """Whether the file has this size and digest; the size is compared first. OSError where it cannot be read."""
    return path.stat().st_size == facts["bytes"] and file_digest(path) == facts["sha256"]


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text`, given whole or in pieces: a reader sees the old or the new file, whatever is killed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other hosts have the same process ids
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines([text] if isinstance(text, str) else text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk: a rename in it outlives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache() -> Path:
    """The folder of this user's caches: XDG_CACHE_HOME or ~/.cache; of a user without a home (a number in a container)
    one below the machine's temporary folder."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given).expanduser()
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it when the holder dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)


def check_locks(root: Path, mounts: Path = MOUNTS) -> None:
    """Warn where the root lies on NFS mounted so that locks do not reach other hosts. mounts: the kernel's list."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:  # no Linux
        return
    above = [line for line in lines if len(line) > 3 and root.is_relative_to(line[1].replace("\\040", " "))]
    _, point, kind, options, *_ = max(above, key=lambda line: len(line[1]), default=("", "", "", ""))
    local = {"nolock", "local_lock=all", "local_lock=flock"} & set(options.split(","))
    if kind.startswith("nfs") and local:
        warnings.warn(
            f"{point} is NFS mounted with {local.pop()}: use this store from one host at a time, or mount it without",
            stacklevel=3,
        )
