"""A store at a URL and its copy on this machine: what is finished goes up, what is missing comes down, verified.

Work always reads and writes the copy, a plain store folder that `mirror.json` marks with its URL. A folder goes up
files first, under a prefix named by their digests, its manifest last: it is there when its manifest is, and two writers
cannot mix. Every function here does nothing for a path that lies in no copy. Knows nothing of what stages compute.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from engine.errors import StorageError
from engine.store.object_store import Remote, remote

MARK = "mirror.json"
MANIFEST = "manifest.json"
THREADS = 8  # files moved at once


class DamagedError(Exception):
    """What the object store holds is not what its manifest says."""


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A store's URL, and the folder of its copy on this machine."""

    url: str
    root: str

    @property
    def remote(self) -> Remote:
        return remote(self.url)

    def key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def mark(self) -> None:
        """Make the copy's folder and say whose copy it is."""
        mark = Path(self.root) / MARK
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            temporary = mark.with_name(f".{MARK}.{secrets.token_hex(4)}")
            temporary.write_text(json.dumps({"url": self.url}))
            temporary.replace(mark)

    def manifest(self, folder: Path) -> dict[str, Any] | None:
        """The manifest of what was published as `folder`, None where nothing was. DamagedError where it is cut."""
        raw = self.remote.get(f"{self.key(folder)}/{MANIFEST}")
        if raw is None:
            return None
        try:
            manifest = json.loads(raw)
            if manifest["sha256"] != digest_of(manifest):
                raise ValueError("changed after it was written")
            for name in manifest["files"]:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise ValueError("a file outside its folder")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{self.url}/{self.key(folder)}: manifest is damaged") from error
        return dict(manifest)

    def publish(self, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """Upload a finished folder, its manifest last, unless another machine was first; returns the manifest that
        stands there then."""
        key, name = self.key(folder), _prefix(manifest)
        there = self.manifest(folder)
        if there is None:
            self._upload(folder, manifest, f"{key}/{name}")
            there = self.manifest(folder)
            if there is None:
                self.remote.put(f"{key}/{MANIFEST}", _text(manifest))
                there = self.manifest(folder) or manifest
            if there["sha256"] != manifest["sha256"]:
                self.remote.delete_below(f"{key}/{name}")
        return there

    def replace(self, folder: Path, manifest: dict[str, Any], at: Path) -> None:
        """Upload `folder` as `at`, its manifest last, in the place of what was there, which is then deleted."""
        key, name = self.key(at), _prefix(manifest)
        self._upload(folder, manifest, f"{key}/{name}")
        self.remote.put(f"{key}/{MANIFEST}", _text(manifest))
        for old in self.remote.folders(key):
            if old != name:
                self.remote.delete_below(f"{key}/{old}")

    def _upload(self, folder: Path, manifest: dict[str, Any], prefix: str) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(self.remote.upload, folder / each, f"{prefix}/{each}") for each in manifest["files"]]
            for job in jobs:
                job.result()

    def fetch(self, folder: Path, manifest: dict[str, Any], at: Path | None = None) -> None:
        """Download a published stage to `folder`, or what was uploaded as `at`. It appears whole; the caller holds its
        lock. DamagedError where a file is not what the manifest says."""
        key = f"{self.key(at or folder)}/{_prefix(manifest)}"
        temporary = folder.with_name(f".{folder.name}.{_prefix(manifest)}")  # a killed download is gone on from
        temporary.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(self._fetch_file, f"{key}/{each}", temporary / each, facts)
                    for each, facts in manifest["files"].items()]  # fmt: skip
            for job in jobs:
                job.result()
        if at is None:
            (temporary / MANIFEST).write_bytes(_text(manifest))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    def _fetch_file(self, key: str, path: Path, facts: dict[str, Any]) -> None:
        if path.is_file() and _is(path, facts):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.remote.download(key, path)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.url}/{key} is missing") from error
        if not _is(path, facts):
            path.unlink()
            raise DamagedError(f"{self.url}/{key} is damaged")

    def withdraw(self, folder: Path) -> None:
        """Delete what was published as `folder`, its manifest first."""
        key = self.key(folder)
        self.remote.delete(f"{key}/{MANIFEST}")
        self.remote.delete_below(key)

    def set_aside(self, folder: Path) -> None:
        """Rename the manifest of what was published as `folder`: it is no stage any more, its files stay to be looked
        at until it is published again."""
        key = self.key(folder)
        raw = self.remote.get(f"{key}/{MANIFEST}")
        if raw is not None:
            self.remote.put(f"{key}/manifest.damaged-{secrets.token_hex(4)}", raw)
            self.remote.delete(f"{key}/{MANIFEST}")

    def clear(self, work: Path) -> None:
        """Delete what was shared of a stage's unfinished work."""
        self.remote.delete_below(self.key(work))


def local_copy(url: str) -> Path:
    """The folder of this machine's copy of the store at `url`, below LEAKATK_CACHE or ~/.cache/leakatk."""
    store = remote(url).url
    digest = hashlib.sha256(store.encode()).hexdigest()[:8]
    parent = os.environ.get("LEAKATK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "leakatk"
    root = Path(parent).expanduser().resolve() / f"{urlsplit(store).netloc}-{digest}"
    Mirror(store, str(root)).mark()
    return root


def mirror_of(path: Path) -> Mirror | None:
    """The mirror whose copy `path` lies in, None where it lies in a plain folder."""
    for parent in (path, *path.parents):
        try:
            return Mirror(json.loads((parent / MARK).read_text())["url"], str(parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def present(path: Path | str) -> Path:
    """`path`, the finished stage that it lies in fetched where it is not on this machine yet."""
    from engine.store.store import locked

    path = Path(path)
    mirror = None if path.exists() else mirror_of(path)
    if mirror is None:
        return path
    folder = Path(mirror.root, *path.relative_to(mirror.root).parts[:2])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            try:
                manifest = mirror.manifest(folder)
                if manifest is None:
                    raise DamagedError(f"{mirror.url}/{mirror.key(folder)} is missing")
                mirror.fetch(folder, manifest)
            except DamagedError as error:
                mirror.set_aside(folder)
                raise StorageError(f"{error}; run the same command again, which makes it again") from error
    return path


def at_home(path: Path, root: Path) -> Path:
    """`path`, noted on a machine that had the store `root` in another place, where it is on this one."""
    if path.exists() or path.is_relative_to(root) or root.name not in path.parts:
        return path
    return root.joinpath(*path.parts[path.parts.index(root.name) + 1 :])


def readable(path: Path) -> Any:
    """One file of a finished stage for pyarrow: its path where it is on this machine, else its bytes, verified."""
    mirror = None if path.exists() else mirror_of(path)
    if mirror is None:
        return path
    folder = Path(mirror.root, *path.relative_to(mirror.root).parts[:2])
    manifest = _kept_manifest(mirror, folder)
    name = path.relative_to(folder).as_posix()
    data = mirror.remote.get(f"{mirror.key(folder)}/{_prefix(manifest)}/{name}")
    if data is None or hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        mirror.set_aside(folder)
        raise StorageError(f"{mirror.url}/{mirror.key(path)} is damaged; run the same command again")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=16)
def _kept_manifest(mirror: Mirror, folder: Path) -> dict[str, Any]:
    manifest = mirror.manifest(folder)
    if manifest is None:
        raise StorageError(f"{mirror.url}/{mirror.key(folder)} is missing; run the same command again")
    return manifest


def share_file(path: Path) -> None:
    """Upload one committed file of unfinished work."""
    mirror = mirror_of(path)
    if mirror is not None:
        mirror.remote.upload(path, mirror.key(path))


def collect_files(folder: Path) -> None:
    """Download the committed files of `folder`, of unfinished work, that are not on this machine."""
    mirror = mirror_of(folder)
    if mirror is None:
        return
    key = mirror.key(folder)

    def fetch(name: str) -> None:
        temporary = folder / f".{name}.fetch"
        mirror.remote.download(f"{key}/{name}", temporary)
        temporary.replace(folder / name)

    missing = [name for name in mirror.remote.sizes(key) if "/" not in name and not (folder / name).exists()]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, missing))


def share_folder(folder: Path, order: int = 0) -> None:
    """Upload a folder of unfinished work, such as a checkpoint, in the place of the one before it. order: grows from
    one to the next."""
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.replace(folder, described(folder, order), folder)


def collect_folder(folder: Path, above: int) -> None:
    """Download the folder that was shared as `folder` where its order is above that of what this machine has."""
    mirror = mirror_of(folder)
    if mirror is None:
        return
    try:
        manifest = mirror.manifest(folder)
        if manifest is not None and manifest["order"] > above:
            mirror.fetch(folder, manifest, at=folder)
    except DamagedError:  # the work begins anew, or from what this machine has
        mirror.withdraw(folder)


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says but this digest, the same before it is written and after it is read."""
    said = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def described(folder: Path, order: int = 0, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A manifest of a folder of unfinished work: its files, but temporary ones and what is named in `without`."""
    from engine.store.store import file_facts

    names = {each: each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_file()}
    files = {
        name.as_posix(): file_facts(each)
        for each, name in names.items()
        if name.parts[0] not in without and not any(part.startswith(".") for part in name.parts)
    }
    manifest: dict[str, Any] = {"files": files, "order": order}
    return manifest | {"sha256": digest_of(manifest)}


def _text(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _prefix(manifest: dict[str, Any]) -> str:
    return str(manifest["sha256"])[:16]


def _is(path: Path, facts: dict[str, Any]) -> bool:
    from engine.store.store import file_facts

    return path.stat().st_size == facts["bytes"] and file_facts(path) == facts
