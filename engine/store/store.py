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
import json
import os
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.fingerprint import file_digest, fingerprint
from engine.store.object_store import is_url
from engine.store.replica import MANIFEST, DamagedError, digest_of, local_copy, mirror_of

LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its manifest, and whether it stood there already. Of a stage asked for `lazily` the
    folder may not be on this machine yet: engine.store.replica.present fetches it."""

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


def file_facts(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as manifests say them."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text`, given whole or in pieces: a reader sees the old or the new file, whatever is killed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other hosts have the same process ids
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines([text] if isinstance(text, str) else text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


class Store:
    """Stage folders below one root, safe for several processes and threads at once.

    root: a folder, or the URL of an object store; then `self.root` is its copy on this machine, and a finished stage
    stands in both. Raises UserError where the root cannot be made or written.
    """

    def __init__(self, root: Path | str) -> None:
        given = str(root)
        self.root = local_copy(given) if is_url(given) else Path(root).expanduser().resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"store {self.root}: not writable ({error.strerror}); choose another by --store or LEAKATK_STORE"
            ) from error
        check_locks(self.root)
        self.mirror = mirror_of(self.root)
        if self.mirror is not None:
            self.mirror.remote.check_writable()
        self._verified: set[str] = set()
        self._agreed: set[str] = set()  # of those, what the object store has too

    @property
    def address(self) -> str:
        """What opens this store on any machine: its URL, or its folder."""
        return self.mirror.url if self.mirror is not None else str(self.root)

    def stage(
        self, kind: str, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any]], lazily: bool = False
    ) -> Stage:
        """Return the finished stage of these inputs, building it first where it is not there.

        inputs: JSON-able, and everything that the result depends on. build(work) fills the folder `work`, which may
        hold what an interrupted build left, and returns JSON-able facts for the manifest; what it raises passes
        through, and `work` stays for the next try. lazily: what an object store has is not fetched.
        """
        key = fingerprint({"kind": kind, "inputs": inputs})
        folder = self.root / kind / key[:20]
        folder.parent.mkdir(parents=True, exist_ok=True)
        finished = self._open(folder, key)
        if finished is not None and (self.mirror is None or key in self._agreed):
            return finished
        with locked(folder.with_suffix(".lock")):
            finished = self._find(folder, key, lazily)  # another process may have built it while this one waited
            if finished is not None:
                return finished
            return self._build(folder, key, {"kind": kind, "fingerprint": key, "inputs": inputs}, build)

    def _build(
        self, folder: Path, key: str, identity: dict[str, Any], build: Callable[[Path], dict[str, Any]]
    ) -> Stage:
        work = folder.with_suffix(".work")
        work.mkdir(exist_ok=True)
        clock, processor = time.monotonic(), _processor_seconds()
        try:
            facts = build(work)
        except BaseException:
            with contextlib.suppress(OSError):  # it holds something to go on from
                work.rmdir()
            raise
        manifest = identity | {
            "facts": facts,
            "versions": _versions(),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_seconds": round(time.monotonic() - clock, 3),
            "driver_cpu_seconds": round(_processor_seconds() - processor, 3),
            "files": _seal(work),
        }
        manifest["sha256"] = digest_of(manifest)
        write_atomic(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
        try:
            work.rename(folder)
        except OSError:  # on a network file system whose locks do not hold, another host was first
            other = self._open(folder, key)
            if other is None:
                raise
            shutil.rmtree(work, ignore_errors=True)
            return other
        _sync_folder(folder.parent)
        self._verified.add(key)
        return self._agree(Stage(folder, manifest, reused=False))

    def _find(self, folder: Path, key: str, lazily: bool) -> Stage | None:
        """The stage in `folder`, or in the object store; the same in both where it is in either. Under the lock."""
        finished = self._open(folder, key)
        if self.mirror is None:
            return finished
        there = self._published(folder, key)
        if there is None:
            return self._agree(finished) if finished is not None else None
        if finished is not None:  # a kill may have come between the manifest and this
            self.mirror.clear(folder.with_suffix(".work"))
        if finished is None or finished.manifest["sha256"] != there["sha256"]:
            shutil.rmtree(folder, ignore_errors=True)  # another machine finished first: all go on from the same files
            try:
                if not lazily:
                    self.mirror.fetch(folder, there)
            except DamagedError as error:
                self._set_aside(folder, error)
                return None
        self._agreed.add(key)
        self._verified.add(key)
        return Stage(folder, there, reused=True)

    def _agree(self, stage: Stage) -> Stage:
        """Publish what stands on this machine; where another machine was first, take what it has published."""
        if self.mirror is None:
            return stage
        key = stage.fingerprint
        there = self.mirror.publish(stage.path, stage.manifest)
        self.mirror.clear(stage.path.with_suffix(".work"))
        if there["sha256"] != stage.manifest["sha256"]:
            self.mirror.fetch(stage.path, there)
            stage = Stage(stage.path, there, reused=True)
        self._agreed.add(key)
        return stage

    def _published(self, folder: Path, key: str) -> dict[str, Any] | None:
        assert self.mirror is not None
        try:
            there = self.mirror.manifest(folder)
            if there is not None and there.get("fingerprint") != key:
                raise DamagedError(f"{self.mirror.url}/{self.mirror.key(folder)}: manifest of another stage")
        except DamagedError as error:
            self._set_aside(folder, error)
            return None
        return there

    def _set_aside(self, folder: Path, error: DamagedError) -> None:
        import warnings

        assert self.mirror is not None
        warnings.warn(f"{error}: set aside there, and made again", stacklevel=5)
        self.mirror.set_aside(folder)

    def _open(self, folder: Path, key: str) -> Stage | None:
        """The stage in `folder` if it is whole; a damaged one is set aside so that it is built again."""
        if not folder.is_dir():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["fingerprint"] != key:
                raise ValueError("manifest of another stage")
            if manifest["sha256"] != digest_of(manifest):
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


def _verify(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, expected in files.items():
        path = folder / name
        if path.stat().st_size != expected["bytes"] or file_digest(path) != expected["sha256"]:
            raise ValueError(f"{path} is damaged")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage's folder, on this machine or in the object store; empty where there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        mirror = mirror_of(folder)
        with contextlib.suppress(DamagedError):
            return (mirror.manifest(folder) if mirror is not None else None) or {}
        return {}
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
            files[path.relative_to(work).as_posix()] = file_facts(path)
    return files


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_locks(root: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Warn where the root lies on NFS mounted so that locks do not reach other hosts."""
    import warnings

    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:  # no Linux
        return
    above = [each for each in lines if len(each) > 3 and root.is_relative_to(each[1].replace("\\040", " "))]
    _, point, kind, options, *_ = max(above, key=lambda each: len(each[1]), default=("", "", "", ""))
    local = {"nolock", "local_lock=all", "local_lock=flock"} & set(options.split(","))
    if kind.startswith("nfs") and local:
        warnings.warn(
            f"{point} is NFS mounted with {local.pop()}: use this store from one host at a time, or mount it without",
            stacklevel=3,
        )


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
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
