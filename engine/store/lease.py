"""Who may write the folder of a training: the worker that began last.

A worker whose driver was killed, or whose node was cut off and taken for dead, may still be at work when another begins
in its place. Knows nothing of training.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from engine.store.files import write_atomic

CLAIM = ".claim"
Arguments = ParamSpec("Arguments")


class SupersededError(RuntimeError):
    """Another worker has begun the same work again: this one must leave it."""


class Claim:
    """Taken when it is made; `check` raises SupersededError once another was made for the same folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.token = folder / CLAIM, secrets.token_hex(8)
        write_atomic(self.path, self.token)

    def check(self) -> None:
        try:
            holder = self.path.read_text(encoding="utf-8")
        except OSError:  # the stage is finished, and its folder has another name
            holder = ""
        if holder != self.token:
            raise SupersededError(f"{self.path.parent}: another worker has begun this again")

    def checked(self, report: Callable[Arguments, None]) -> Callable[Arguments, None]:
        """`report`, which checks first: a worker that lost its claim ends with its step."""

        def reported(*args: Arguments.args, **options: Arguments.kwargs) -> None:
            self.check()
            report(*args, **options)

        return reported
