"""Atomic, fingerprinted stage folders: the one cache of the engine.

A stage is a function from JSON-able inputs to a folder. Asked for the same inputs again it returns the finished folder.
While it is built, its files stand in a `.work` folder that survives a kill, so that the builder can go on from what is
complete; a finished folder appears by one rename, with a manifest of every file's size and digest. Knows nothing of
what the stages compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.store.files import check_locks, locked, sync_folder, write_atomic
from engine.store.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    digest_of,
    parse_manifest,
    seal,
    text_of,
    verify,
    versions,
)
from engine.store.object_store import is_url
from engine.store.replica import local_copy, mirror_of


@dataclasses.dataclass(frozen=True)
class FinishedStage:
    """A finished stage: its folder, its manifest, and whether it stood there already. Of a stage asked for `lazily` the
    folder may not be on this machine yet: engine.store.replica.present fetches it."""

    path: Path
    manifest: Manifest
    reused: bool

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def facts(self) -> JsonObject:
        """What the builder returned: counts, tokens, losses."""
        return dict(self.manifest["facts"])


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
            probe = self.root / f".writable-{secrets.token_hex(4)}"
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
        self, kind: str, inputs: JsonObject, build: Callable[[Path], JsonObject], lazily: bool = False
    ) -> FinishedStage:
        """Return the finished stage of these inputs, building it first where it is not there.

        inputs: JSON-able, and everything that the result depends on. build(work) fills the folder `work`, which may
        hold what an interrupted build left, and returns JSON-able facts for the manifest; what it raises passes
        through, and `work` stays for the next try. lazily: what an object store has is not fetched.
        """
        return self.stages([(kind, inputs)], lambda works: [build(works[0])], lazily)[0]

    def stages(
        self,
        wanted: Sequence[tuple[str, JsonObject]],
        build: Callable[[dict[int, Path]], Sequence[JsonObject]],
        lazily: bool = False,
    ) -> list[FinishedStage]:
        """`stage` for several (kind, inputs) at once: those that are missing are built by one call of `build`, which is
        given their work folders by index in `wanted`, and returns the facts of each in that order."""
        keys = [fingerprint({"kind": kind, "inputs": inputs}) for kind, inputs in wanted]
        index_of = {key: index for index, key in enumerate(keys)}
        finished: dict[str, FinishedStage] = {}
        missing: list[str] = []
        with contextlib.ExitStack() as locks:
            for key in sorted(index_of):  # all ask in the same order, so that no two wait for each other
                folder = self._folder(wanted[index_of[key]][0], key)
                found = self._open(folder, key)
                if found is None or (self.mirror is not None and key not in self._agreed):
                    with contextlib.ExitStack() as lock:
                        lock.enter_context(locked(folder.with_suffix(".lock")))
                        found = self._find(folder, key, lazily)  # another process may have built it meanwhile
                        if found is None:
                            missing.append(key)
                            locks.push(lock.pop_all())
                if found is not None:
                    finished[key] = found
            if missing:
                chosen = {index_of[key]: (key, *wanted[index_of[key]]) for key in missing}
                finished |= zip(missing, self._build(chosen, build), strict=True)
        return [finished[key] for key in keys]

    def _folder(self, kind: str, key: str) -> Path:
        folder = self.root / kind / key[:20]
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def _build(
        self, missing: dict[int, tuple[str, str, JsonObject]], build: Callable[[dict[int, Path]], Sequence[JsonObject]]
    ) -> list[FinishedStage]:
        """The stages of these (key, kind, inputs), filled by one call of `build`. Under their locks."""
        works = {index: self._folder(kind, key).with_suffix(".work") for index, (key, kind, _) in missing.items()}
        for work in works.values():
            work.mkdir(exist_ok=True)
        clock, processor = time.monotonic(), _processor_seconds()
        try:
            facts = build(works)
        except BaseException:
            for work in works.values():
                with contextlib.suppress(OSError):  # it holds something to go on from
                    work.rmdir()
            raise
        wall, cpu = time.monotonic() - clock, _processor_seconds() - processor
        return [
            self._commit(
                {
                    "kind": kind,
                    "fingerprint": key,
                    "inputs": inputs,
                    "facts": own,
                    "versions": versions(),
                    "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "wall_seconds": round(wall, 3),
                    "driver_cpu_seconds": round(cpu, 3),
                }
            )
            for (key, kind, inputs), own in zip(missing.values(), facts, strict=True)
        ]

    def _commit(self, manifest: Manifest) -> FinishedStage:
        """Seal a filled work folder with its manifest, and let it appear as the finished stage."""
        key = manifest["fingerprint"]
        folder = self._folder(manifest["kind"], key)
        work = folder.with_suffix(".work")
        manifest["files"] = seal(work)
        manifest["sha256"] = digest_of(manifest)
        write_atomic(work / MANIFEST, text_of(manifest))
        try:
            work.rename(folder)
        except OSError:  # on a network file system whose locks do not hold, another host was first
            other = self._open(folder, key)
            if other is None:
                raise
            shutil.rmtree(work, ignore_errors=True)
            return other
        sync_folder(folder.parent)
        self._verified.add(key)
        return self._agree(FinishedStage(folder, manifest, reused=False))

    def _find(self, folder: Path, key: str, lazily: bool) -> FinishedStage | None:
        """The stage in `folder`, or in the object store; the same in both where it is in either. Under the lock."""
        finished = self._open(folder, key)
        if self.mirror is None:
            return finished
        published = self._published(folder, key)
        if published is None:
            return self._agree(finished) if finished is not None else None
        if finished is not None:  # a kill may have come between the manifest and this
            self.mirror.clear(folder.with_suffix(".work"))
        if finished is None or finished.manifest["sha256"] != published["sha256"]:
            shutil.rmtree(folder, ignore_errors=True)  # another machine finished first: all go on from the same files
            try:
                if not lazily:
                    self.mirror.fetch(folder, published)
            except DamagedError as error:
                self._set_aside(folder, error)
                return None
        self._agreed.add(key)
        self._verified.add(key)
        return FinishedStage(folder, published, reused=True)

    def _agree(self, stage: FinishedStage) -> FinishedStage:
        """Publish what stands on this machine; where another machine was first, take what it has published."""
        if self.mirror is None:
            return stage
        key = stage.fingerprint
        published = self.mirror.publish(stage.path, stage.manifest)
        self.mirror.clear(stage.path.with_suffix(".work"))
        if published["sha256"] != stage.manifest["sha256"]:
            self.mirror.fetch(stage.path, published)
            stage = FinishedStage(stage.path, published, reused=True)
        self._agreed.add(key)
        return stage

    def _published(self, folder: Path, key: str) -> Manifest | None:
        assert self.mirror is not None
        try:
            published = self.mirror.manifest(folder)
            if published is not None and published.get("fingerprint") != key:
                raise DamagedError(f"{self.mirror.url}/{self.mirror.key(folder)}: manifest of another stage")
        except DamagedError as error:
            self._set_aside(folder, error)
            return None
        return published

    def _set_aside(self, folder: Path, error: DamagedError) -> None:
        assert self.mirror is not None
        warnings.warn(f"{error}: set aside there, and made again", stacklevel=5)
        self.mirror.set_aside(folder)

    def _open(self, folder: Path, key: str) -> FinishedStage | None:
        """The stage in `folder` if it is whole; a damaged one is set aside so that it is built again."""
        if not folder.is_dir():
            return None
        try:
            manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"), str(folder))
            if manifest["fingerprint"] != key:
                raise DamagedError(f"{folder}: manifest of another stage")
            if key not in self._verified:
                verify(folder, manifest)
        except FileNotFoundError:
            if not folder.is_dir():  # set aside by another process between the two looks
                return None
            _set_aside(folder)
            return None
        except (DamagedError, KeyError, TypeError, UnicodeDecodeError, OSError):
            _set_aside(folder)
            return None
        self._verified.add(key)
        return FinishedStage(folder, manifest, reused=True)


def _set_aside(folder: Path) -> None:
    damaged = folder.with_suffix(f".damaged-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(damaged)
        warnings.warn(f"{folder} was damaged: set aside as {damaged.name} and made again", stacklevel=4)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
