"""The manifest of a folder: size and digest of every file, and of a stage what it was made from, by what and when.

Knows nothing of where a folder is kept or what its stage computes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TypedDict

from engine.jsonl import JsonObject
from engine.store.files import FileFacts, file_facts, matches

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "datasets", "numpy")


class DamagedError(ValueError):
    """A folder, here or in the object store, is not what its manifest says."""


class Manifest(TypedDict, total=False):
    """What manifest.json holds. All have files and sha256, a finished stage the rest, unfinished work its order."""

    files: dict[str, FileFacts]
    sha256: str  # of all the rest
    order: int  # grows from one upload of a folder to the next
    kind: str
    fingerprint: str
    inputs: JsonObject
    facts: JsonObject  # what the stage's builder returned: counts, tokens, losses
    versions: dict[str, str]
    finished_at: str
    wall_seconds: float
    driver_cpu_seconds: float


def digest_of(manifest: Manifest) -> str:
    """SHA-256 of all that a manifest says but this digest, the same before it is written and after it is read."""
    rest = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def prefix_of(manifest: Manifest) -> str:
    """The name under which a folder's files stand in the object store: two writers' do not mix."""
    return manifest["sha256"][:16]


def text_of(manifest: Manifest) -> str:
    """The manifest as it is written."""
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)


def parse_manifest(raw: bytes | str, where: str) -> Manifest:
    """The manifest that was written as `raw`. DamagedError where it is cut, changed, or names a file elsewhere."""
    try:
        manifest: Manifest = json.loads(raw)
        if manifest["sha256"] != digest_of(manifest):
            raise ValueError("changed after it was written")
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in manifest["files"]):
            raise ValueError("a file outside its folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{where}: manifest is damaged") from error
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """DamagedError unless every file of the folder is as the manifest says; OSError where one is not there."""
    for name, facts in manifest["files"].items():
        if not matches(folder / name, facts):
            raise DamagedError(f"{folder / name} is damaged")


def seal(work: Path) -> dict[str, FileFacts]:
    """Flush every file to disk and note its size and digest; temporary files (leading dot) are dropped."""
    files = {}
    for path in sorted(work.rglob("*")):
        if path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif path.is_file() and path != work / MANIFEST:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            files[path.relative_to(work).as_posix()] = file_facts(path)
    return files


def described(folder: Path, order: int = 0, without: tuple[str, ...] = ()) -> Manifest:
    """A manifest of a folder of unfinished work: its files, but temporary ones and what is named in `without`."""
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name.as_posix(): file_facts(path)
        for path, name in names.items()
        if name.parts[0] not in without and not any(part.startswith(".") for part in name.parts)
    }
    manifest: Manifest = {"files": files, "order": order}
    manifest["sha256"] = digest_of(manifest)
    return manifest


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    installed = {}
    for name in ("leakatk", *LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed | ({"leakatk_commit": commit} if (commit := _commit()) else {})


@functools.cache
def _commit() -> str:
    """The commit of the checkout that this package runs from, with .dirty where it was changed; else empty."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
