"""Atomic, fingerprinted stage folders: the one cache of the engine.

A stage is a function from JSON-able inputs to a folder. Asked for the same inputs again it returns the finished folder.
While it is built, its files stand in a `.work` folder that survives a kill, so that the builder can go on from what is
complete; a finished folder appears by one rename, with a manifest of every file's size and digest. Knows nothing of
what the stages compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import resource
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.errors import UserError

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its manifest, and whether it stood there already."""

    path: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the builder returned: counts, tokens, losses."""
        return dict(self.manifest["facts"])


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. TypeError for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """64 hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text`, given whole or in pieces: a reader sees the old or the new file, whatever is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines([text] if isinstance(text, str) else text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


class Store:
    """Stage folders below one root, safe for several processes and threads at once.

    Raises UserError where the root cannot be made or written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"store {self.root}: not writable ({error.strerror}); choose another by --store or LEAKATK_STORE"
            ) from error
        self._verified: set[str] = set()

    def stage(self, kind: str, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> Stage:
        """Return the finished stage of these inputs, building it first where it is not there.

        inputs: JSON-able, and everything that the result depends on. build(work) fills the folder `work`, which may
        hold what an interrupted build left, and returns JSON-able facts for the manifest; what it raises passes
        through, and `work` stays for the next try.
        """
        key = fingerprint({"kind": kind, "inputs": inputs})
        folder = self.root / kind / key[:20]
        folder.parent.mkdir(parents=True, exist_ok=True)
        finished = self._open(folder, key)
        if finished is not None:
            return finished
        with locked(folder.with_suffix(".lock")):
            finished = self._open(folder, key)  # another process may have built it while this one waited
            if finished is not None:
                return finished
            work = folder.with_suffix(".work")
            work.mkdir(exist_ok=True)
            clock, processor = time.monotonic(), _processor_seconds()
            try:
                facts = build(work)
            except BaseException:
                with contextlib.suppress(OSError):  # it holds something to go on from
                    work.rmdir()
                raise
            manifest = {
                "kind": kind,
                "fingerprint": key,
                "inputs": inputs,
                "facts": facts,
                "versions": _versions(),
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "wall_seconds": round(time.monotonic() - clock, 3),
                "driver_cpu_seconds": round(_processor_seconds() - processor, 3),
                "files": _seal(work),
            }
            manifest["sha256"] = _manifest_digest(manifest)
            write_atomic(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
            work.rename(folder)
            _sync_folder(folder.parent)
        self._verified.add(key)
        return Stage(folder, manifest, reused=False)

    def _open(self, folder: Path, key: str) -> Stage | None:
        """The stage in `folder` if it is whole; a damaged one is set aside so that it is built again."""
        if not folder.is_dir():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["fingerprint"] != key:
                raise ValueError("manifest of another stage")
            if manifest["sha256"] != _manifest_digest(manifest):
                raise ValueError("manifest is damaged")
            if key not in self._verified:
                _verify(folder, manifest["files"])
        except FileNotFoundError:
            if not folder.is_dir():  # set aside by another process between the two looks
                return None
            _set_aside(folder)
            return None
        except (ValueError, KeyError, TypeError, OSError):
            _set_aside(folder)
            return None
        self._verified.add(key)
        return Stage(folder, manifest, reused=True)


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says but this digest, the same before it is written and after it is read."""
    said = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, expected in files.items():
        path = folder / name
        if path.stat().st_size != expected["bytes"] or file_digest(path) != expected["sha256"]:
            raise ValueError(f"{path} is damaged")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage's folder; empty where there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _set_aside(folder: Path) -> None:
    import warnings

    damaged = folder.with_suffix(f".damaged-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(damaged)
        warnings.warn(f"{folder} was damaged: set aside as {damaged.name} and made again", stacklevel=4)


def _seal(work: Path) -> dict[str, dict[str, Any]]:
    """Flush every file to disk and note its size and digest; temporary files (leading dot) are dropped."""
    files = {}
    for path in sorted(work.rglob("*")):
        if path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif path.is_file() and path != work / MANIFEST:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            files[path.relative_to(work).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it when the holder dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _versions() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    versions = {}
    for name in ("leakatk", *LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | ({"leakatk_commit": commit} if (commit := _commit()) else {})


@functools.cache
def _commit() -> str:
    """The commit of the checkout that this package runs from, with .dirty where it was changed; else empty."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
