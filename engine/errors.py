"""The errors that the engine tells apart, such as a user's mistake and a model that has diverged."""

from __future__ import annotations

import errno

FULL_TEXTS = (  # of libraries that raise no OSError: SQLite; safetensors; torch
    "disk is full",
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
)


class UserError(Exception):
    """Says what was wrong, where, and what to do, in one line; the command line prints it and exits with 2."""


class DivergedError(ValueError):
    """A loss or a model's logits are no longer finite: this model is lost, the experiment's others are not."""


class InterruptedTrainingError(Exception):
    """A training was asked to stop; it has saved a checkpoint that the same training goes on from."""


class DiskFullError(OSError):
    """A worker could not write: the disk is full."""


class StorageError(Exception):
    """The object store failed or refused in the middle of work, in one line; what was finished is kept."""


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the disk being full is what lies behind an error, here or in a worker."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or isinstance(error, DiskFullError) or any(text in str(error) for text in FULL_TEXTS):
            return True
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return False


def one_line(text: str) -> str:
    """`text` for a terminal: white space as single spaces, and what does not print escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split()))
