"""A store at a URL and its copy on this machine: what is finished goes up, what is missing comes down, verified.

Work always reads and writes the copy, a plain store folder that `mirror.json` marks with its URL. A folder goes up
files first, under a prefix named by their digests, its manifest last: it is there when its manifest is, and two writers
cannot mix. Every function here does nothing for a path that lies in no copy. Knows nothing of what stages compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import StorageError
from engine.store.files import FileFacts, locked, matches, user_cache, write_atomic
from engine.store.manifest import MANIFEST, DamagedError, Manifest, described, parse_manifest, prefix_of, text_of
from engine.store.object_store import Remote, remote

MARK = "mirror.json"
THREADS = 8  # files moved at once


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
            write_atomic(mark, json.dumps({"url": self.url}))

    def manifest(self, folder: Path) -> Manifest | None:
        """The manifest of what was published as `folder`, None where nothing was. DamagedError where it is cut."""
        raw = self.remote.get(f"{self.key(folder)}/{MANIFEST}")
        return None if raw is None else parse_manifest(raw, f"{self.url}/{self.key(folder)}")

    def publish(self, folder: Path, manifest: Manifest) -> Manifest:
        """Upload a finished folder, its manifest last, unless another machine was first; returns the manifest that
        stands there then."""
        key, name = self.key(folder), prefix_of(manifest)
        published = self.manifest(folder)
        if published is None:
            self._upload(folder, manifest, f"{key}/{name}")
            published = self.manifest(folder)
            if published is None:
                self.remote.put(f"{key}/{MANIFEST}", text_of(manifest).encode())
                published = self.manifest(folder) or manifest
            if published["sha256"] != manifest["sha256"]:
                self.remote.delete_below(f"{key}/{name}")
        return published

    def replace(self, folder: Path, manifest: Manifest, at: Path) -> None:
        """Upload `folder` as `at`, its manifest last, in the place of what was there, which is then deleted."""
        key, name = self.key(at), prefix_of(manifest)
        self._upload(folder, manifest, f"{key}/{name}")
        self.remote.put(f"{key}/{MANIFEST}", text_of(manifest).encode())
        for old in self.remote.folders(key):
            if old != name:
                self.remote.delete_below(f"{key}/{old}")

    def _upload(self, folder: Path, manifest: Manifest, prefix: str) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(self.remote.upload, folder / each, f"{prefix}/{each}") for each in manifest["files"]]
            for job in jobs:
                job.result()

    def fetch(self, folder: Path, manifest: Manifest, at: Path | None = None) -> None:
        """Download a published stage to `folder`, or what was uploaded as `at`. It appears whole; the caller holds its
        lock. DamagedError where a file is not what the manifest says."""
        key = f"{self.key(at or folder)}/{prefix_of(manifest)}"
        temporary = folder.with_name(f".{folder.name}.{prefix_of(manifest)}")  # a killed download is gone on from
        temporary.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(self._fetch_file, f"{key}/{each}", temporary / each, facts)
                    for each, facts in manifest["files"].items()]  # fmt: skip
            for job in jobs:
                job.result()
        if at is None:
            (temporary / MANIFEST).write_bytes(text_of(manifest).encode())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    def _fetch_file(self, key: str, path: Path, facts: FileFacts) -> None:
        if path.is_file() and matches(path, facts):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.remote.download(key, path)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.url}/{key} is missing") from error
        if not matches(path, facts):
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
    parent = os.environ.get("LEAKATK_CACHE") or user_cache() / "leakatk"
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


def readable(path: Path) -> Path | io.BytesIO:
    """One file of a finished stage for pyarrow: its path where it is on this machine, else its bytes, verified."""
    mirror = None if path.exists() else mirror_of(path)
    if mirror is None:
        return path
    folder = Path(mirror.root, *path.relative_to(mirror.root).parts[:2])
    manifest = _kept_manifest(mirror, folder)
    name = path.relative_to(folder).as_posix()
    data = mirror.remote.get(f"{mirror.key(folder)}/{prefix_of(manifest)}/{name}")
    if data is None or hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
        mirror.set_aside(folder)
        raise StorageError(f"{mirror.url}/{mirror.key(path)} is damaged; run the same command again")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=16)
def _kept_manifest(mirror: Mirror, folder: Path) -> Manifest:
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


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a finished stage's folder, on this machine or in the object store; empty where there is none."""
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        mirror = mirror_of(folder)
        with contextlib.suppress(DamagedError):
            return (mirror.manifest(folder) if mirror is not None else None) or {}
        return {}
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
