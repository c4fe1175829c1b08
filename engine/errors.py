"""The errors that the engine tells apart, such as a user's mistake and a model that has diverged."""

from __future__ import annotations

import difflib
import errno
import typing
from collections.abc import Collection

if typing.TYPE_CHECKING:
    from pydantic import BaseModel

Model = typing.TypeVar("Model", bound="BaseModel")
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


def known(name: str, valid: Collection[str], where: str, lister: str) -> None:
    """UserError with the nearest valid name unless `name` is one of `valid`."""
    if name not in valid:
        raise UserError(f"{where}: unknown {name!r}{_nearest(name, valid)}; `{lister}` lists all")


def validated(schema: type[Model], values: object, where: str) -> Model:
    """`schema` filled with `values`; its first mistake as a UserError that names the key and the nearest valid one."""
    from pydantic import ValidationError

    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            valid = _fields_at(schema, first["loc"][:-1])
            message = f"unknown key {key!r}{_nearest(str(first['loc'][-1]), valid)}"
        elif first["type"] == "missing":
            message = f"key {key!r} is missing"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            message = f"{key}: {reason}, found {str(first['input'])[:60]!r}" if key else reason
        raise UserError(f"{where}: {' '.join(message.split())}") from error


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location` below `schema`."""
    from pydantic import BaseModel

    for part in location:
        if isinstance(part, int):
            continue
        field = schema.model_fields.get(part)
        if field is None:
            break
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        sections = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
        if not sections:
            break
        schema = sections[0]
    return list(schema.model_fields)


def _nearest(name: str, valid: Collection[str]) -> str:
    near = difflib.get_close_matches(name, [str(each) for each in valid], n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f" (valid: {', '.join(sorted(str(each) for each in valid))})"
