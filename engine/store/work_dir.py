"""The work folder of a stage on the nodes of a cluster, where only the driver's node has the driver's disk.

The driver opens a Workplace and hands it to its workers. With a store that every node sees, or on one node, it does
nothing; with a store at a URL, what a worker of another node made goes through the object store.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.store.manifest import described
from engine.store.replica import Mirror, mirror_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

UNDELIVERED = ("checkpoint", "ray")  # shared by those who write them


@dataclasses.dataclass(frozen=True)
class Workplace:
    """folder: the same path on every node. token: name of a file that tells the driver's disk from others."""

    folder: str
    mirror: Mirror | None
    token: str

    def shared(self, name: str) -> str:
        """A place below the folder that every node reads and writes, on `filesystem`."""
        path = Path(self.folder, name)
        return str(path) if self.mirror is None else self.mirror.remote.path(self.mirror.key(path))

    @property
    def filesystem(self) -> FileSystem | None:
        """pyarrow's file system of what is `shared`; None where it is the nodes' own."""
        return None if self.mirror is None else self.mirror.remote.filesystem

    def arrive(self) -> None:
        """Of a worker, before it works: this node has the folders, and knows whose copy they are."""
        if self.mirror is not None:
            self.mirror.mark()
            Path(self.folder).mkdir(parents=True, exist_ok=True)

    def deliver(self, part: int = 0) -> None:
        """Of a worker, after it worked: what it left goes to the driver where that has another disk."""
        folder = Path(self.folder)
        if self.mirror is not None and not (folder / self.token).exists():
            self.mirror.replace(folder, described(folder, without=UNDELIVERED), folder / f"{self._results}{part}")

    def receive(self) -> None:
        """Of the driver: what workers of other nodes have delivered comes into the folder."""
        folder = Path(self.folder)
        if self.mirror is None:
            return
        for name in self.mirror.remote.folders(self.mirror.key(folder)):
            manifest = self.mirror.manifest(folder / name) if name.startswith(self._results) else None
            if manifest is None:
                continue
            arrived = folder / f".{name}"
            self.mirror.fetch(arrived, manifest, at=folder / name)
            for each in manifest["files"]:
                (folder / each).parent.mkdir(parents=True, exist_ok=True)
                (arrived / each).replace(folder / each)
            shutil.rmtree(arrived)
            self.mirror.withdraw(folder / name)

    @property
    def _results(self) -> str:
        return f"result{self.token}-"  # what a killed driver's workers delivered is not mixed with ours


def at_work(
    place: Workplace, begin: Callable[[], None], function: Callable[..., Any], *arguments: object
) -> Any:  # as Ray types a task
    """Of a worker: `function` of these arguments, with what it reads at hand, and what it writes delivered. begin: says
    that a worker is at it."""
    begin()
    place.arrive()
    result = function(*arguments)
    place.deliver()
    return result


def open_workplace(work: Path) -> Workplace:
    """The workplace of a stage's work folder, for the driver to hand to its workers."""
    mirror, token = mirror_of(work), f".driver-{secrets.token_hex(4)}"
    if mirror is not None:
        (work / token).touch()
    return Workplace(str(work), mirror, token)
